"""Data sets, and who holds what of them."""

import dataclasses
import gzip
import math
import platform
import struct
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.datasets import load_sample_images

import tether
from tether.data import (
    IID,
    Assigned,
    Batches,
    Classes,
    Contiguous,
    CropAndFlip,
    Dataset,
    Dirichlet,
    Feed,
    FixedShards,
    Groups,
    PowerLaw,
    Quantity,
    Reshuffled,
    cifar10,
    classification,
    fashion_mnist,
    holdings,
    image_folder,
    language,
    libsvm,
    mnist,
    picture,
    python_source,
    regression,
    text,
)
from tether.data.cifar import DEVIATION, MEAN
from tether.data.images import DEVIATION as PHOTOGRAPHS_DEVIATION
from tether.data.images import MEAN as PHOTOGRAPHS_MEAN
from tether.data.images import _parts
from tether.data.mnist import FASHION_MNIST
from tether.models import cross_entropy

DIGITS = tether.data.digits()
LABELS = DIGITS.train[1].numpy()


def held(partition, workers=8, seed=0):
    shards = partition.shards(len(LABELS), LABELS, workers, seed)
    return [shards.order(worker, 0) for worker in range(workers)]


@pytest.mark.parametrize(
    "partition",
    [IID(), Classes(2), Classes(3), Dirichlet(0.3), Dirichlet(100.0), Quantity(0.5), PowerLaw(1.0), Groups()],
    ids=str,
)
@pytest.mark.parametrize("seed", [0, 1])
def test_every_sample_has_one_worker(partition, seed):
    mine = held(partition, seed=seed)
    assert sorted(np.concatenate(mine)) == list(range(len(LABELS)))
    again = held(partition, seed=seed)
    assert all(np.array_equal(a, b) for a, b in zip(mine, again, strict=True))
    other = held(partition, seed=seed + 10)
    assert not all(np.array_equal(np.sort(a), np.sort(b)) for a, b in zip(mine, other, strict=True))


@settings(deadline=None, max_examples=40)
@given(workers=st.integers(1, 30), classes=st.integers(1, 10), seed=st.integers(0, 1000))
def test_classes_are_as_many_as_asked(workers, classes, seed):
    if workers * classes < 10:
        with pytest.raises(ValueError, match=f"give each at least {-(-10 // workers)}"):
            held(Classes(classes), workers, seed)
        return
    mine = held(Classes(classes), workers, seed)
    assert all(len(np.unique(LABELS[indices])) == classes for indices in mine)
    assert sorted(np.concatenate(mine)) == list(range(len(LABELS)))


def test_iid_shards_are_of_a_size_and_look_alike():
    sizes = [len(mine) for mine in held(IID())]
    assert max(sizes) - min(sizes) <= 1
    shares = [np.bincount(LABELS[mine], minlength=10) / len(mine) for mine in held(IID())]
    assert np.abs(np.array(shares) - 0.1).max() < 0.06


def test_dirichlet_is_uneven_for_small_beta_and_even_for_large():
    def spread(beta):
        return np.std([np.bincount(LABELS[mine], minlength=10) / len(mine) for mine in held(Dirichlet(beta))], axis=0)

    assert spread(0.1).mean() > 3 * spread(100.0).mean()
    assert min(len(mine) for mine in held(Dirichlet(0.1, min_samples=32))) >= 32


@settings(deadline=None, max_examples=40)
@given(
    partition=st.one_of(
        st.builds(Quantity, st.floats(0.05, 50.0), st.integers(1, 20)),
        st.builds(PowerLaw, st.floats(0.0, 3.0), st.integers(1, 20)),
    ),
    workers=st.integers(1, 60),
    seed=st.integers(0, 1000),
)
def test_amounts_are_no_less_than_asked(partition, workers, seed):
    mine = held(partition, workers, seed)
    assert sorted(np.concatenate(mine)) == list(range(len(LABELS)))
    assert min(map(len, mine)) >= partition.min_samples


def test_amounts_follow_their_law():
    sizes = np.sort([len(mine) for mine in held(PowerLaw(1.0), 10)])[::-1]
    rest = len(LABELS) - 10
    expected = 1 + rest / np.arange(1, 11) / (1 / np.arange(1, 11)).sum()
    assert np.abs(sizes - expected).max() <= 1
    assert np.ptp([len(mine) for mine in held(PowerLaw(0.0), 10)]) <= 1
    # Dirichlet(beta) over m has a standard deviation of sqrt((m − 1) / (m² (m beta + 1))) a share.
    for beta in (0.2, 2.0):
        shares = [[(len(mine) - 1) / rest for mine in held(Quantity(beta), 10, seed)] for seed in range(300)]
        assert np.std(shares) == pytest.approx(math.sqrt(9 / 100 / (10 * beta + 1)), rel=0.1)


def test_amounts_differ_but_what_is_held_does_not():
    large = [mine for mine in held(Quantity(0.5), 8) if len(mine) > 100]
    assert len(large) > 2
    shares = np.array([np.bincount(LABELS[mine], minlength=10) / len(mine) for mine in large])
    assert np.abs(shares - 0.1).max() < 5 * math.sqrt(0.1 * 0.9 / 100)


def test_consecutive_pieces_keep_the_order():
    shards = Contiguous().shards(10, None, 3, seed=5)
    assert [sorted(shards.order(worker, 0)) for worker in range(3)] == [[0, 1, 2, 3], [4, 5, 6], [7, 8, 9]]


def test_whole_groups_go_to_whoever_holds_least():
    groups = np.repeat(np.arange(6), [9, 7, 5, 4, 3, 2])  # the largest first: 9 + 2, 7 + 3 or 5 + 3, 5 + 4 or 7
    shards = Groups().shards(len(groups), groups, 3, seed=0)
    mine = [np.unique(groups[shards.whole(worker, 0)]).tolist() for worker in range(3)]
    assert sorted(mine) == [[0], [1, 4], [2, 3, 5]] or sorted(mine) == [[0, 5], [1, 4], [2, 3]]
    assert sorted(np.concatenate([shards.whole(worker, 0) for worker in range(3)])) == list(range(30))


def test_an_epoch_goes_through_the_shard_once():
    shards = FixedShards([np.arange(10), np.arange(10, 31)], seed=0)
    batches = Batches(shards, 5)
    first = np.concatenate([batches.indices(range(1), number)[0] for number in range(2)])
    second = np.concatenate([batches.indices(range(1), number)[0] for number in range(2, 4)])
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)
    # 21 samples make 4 batches of 5; the 21st rests until the next epoch's shuffle.
    other = np.concatenate([batches.indices(range(1, 2), number)[0] for number in range(4)])
    assert len(set(other)) == 20


def test_batches_do_not_depend_on_what_was_asked_before():
    shards = IID().shards(100, None, 4, 7)
    forward, backward = Batches(shards, 5), Batches(IID().shards(100, None, 4, 7), 5)
    asked = [forward.indices(range(4), number) for number in range(20)]
    for number in reversed(range(20)):
        for worker in (3, 1, 0, 2):
            mine = backward.indices(range(worker, worker + 1), number)
            assert np.array_equal(mine[0], asked[number][worker])


def test_reshuffled_epochs_are_disjoint_and_differ():
    shards = Reshuffled().shards(103, None, 4, 0)
    epochs = [[shards.order(worker, epoch) for worker in range(4)] for epoch in range(2)]
    for epoch in epochs:
        assert len(np.unique(np.concatenate(epoch))) == 100
    assert set(epochs[0][0]) != set(epochs[1][0])
    batches = Batches(shards, 10)  # 25 a worker: two batches an epoch, five samples left out
    assert set(batches.indices(range(1), 1)[0]) <= set(epochs[0][0])
    assert set(batches.indices(range(1), 2)[0]) <= set(epochs[1][0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: held(IID(), workers=2000), "1437 samples are too few.*fewer workers"),
        (lambda: held(Classes(11)), "11 classes a worker: the data has 10"),
        (lambda: held(Classes(0)), "0 classes a worker"),
        (lambda: held(Dirichlet(0.0)), "beta=0.0"),
        (lambda: held(Dirichlet(0.01), workers=30), "raise beta or lower min_samples"),
        (lambda: held(Dirichlet(1.0, min_samples=400)), "too few"),
        (lambda: Classes(2).shards(10, None, 2, 0), "by class or group; this data has neither"),
        (lambda: held(Quantity(0.0)), "beta=0.0"),
        (lambda: held(Quantity(1.0, min_samples=0)), "min_samples=0"),
        (lambda: held(Quantity(1.0, min_samples=200)), "1437 samples are too few: these workers need 1600"),
        (lambda: held(PowerLaw(-1.0)), "exponent=-1.0"),
        (lambda: held(PowerLaw(1.0), workers=2000), "too few"),
        (lambda: held(Contiguous(), workers=2000), "too few"),
        (lambda: held(Groups(), workers=11), "10 groups cannot be dealt whole to 11 workers"),
        (lambda: dataclasses.replace(DIGITS, groups=torch.zeros(3)), "groups has 3 entries for 1437 samples"),
        (lambda: held(Assigned([[0], [], [1]]), workers=3), "worker 1 holds no samples"),
        (lambda: held(Assigned([[0], [1]]), workers=3), "2 shards for 3 workers"),
        (lambda: held(Assigned([[0], [9999]]), workers=2), "worker 1 is given a sample outside 0 to 1436"),
        (lambda: Batches(FixedShards([np.arange(40), np.arange(3)], 0), 8), "batch_size=8: worker 1 holds only 3"),
        (lambda: Batches(FixedShards([np.arange(4)], 0), 0), "batch_size=0"),
        (lambda: DIGITS.partitioned("clases"), "no partition is called 'clases'; did you mean 'classes'"),
        (lambda: Dataset((torch.zeros(3), torch.zeros(4))), "train tensors have 3 and 4 samples"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_any_torch_dataset():
    samples = torch.utils.data.TensorDataset(torch.arange(12.0).view(6, 2), torch.arange(6))
    data = Dataset.from_samples(samples, name="mine")
    assert torch.equal(data.train[0], torch.arange(12.0).view(6, 2))
    assert torch.equal(data.train[1], torch.arange(6))


def test_workers_own_samples():
    data = Dataset.from_workers([(torch.zeros(2, 3),), (torch.ones(5, 3),)])
    shards = data.shards(2)
    assert list(shards.sizes) == [2, 5]
    assert (data.train[0][shards.order(1, 0)] == 1).all()


def test_digits():
    assert DIGITS.train[0].shape == (1437, 1, 8, 8)
    assert DIGITS.test[0].shape == (360, 1, 8, 8)
    assert DIGITS.train[0].min() == 0
    assert DIGITS.train[0].max() == 1


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for part, n in (("train", 20), ("t10k", 5)):
        images = rng.integers(0, 256, (n, 4, 6), dtype=np.uint8)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
        (tmp_path / f"{part}-labels-idx1-ubyte").write_bytes(idx(np.arange(n, dtype=np.uint8) % 3))
    return tmp_path


def test_a_folder_in_the_format_of_mnist(folder):
    data = mnist(folder)
    assert data.train[0].shape == (20, 1, 4, 6)
    assert data.test[1].tolist() == [0, 1, 2, 0, 1]
    assert mnist(folder, held_out=2).test[1].tolist() == [0, 1]
    assert data.classes == 3
    assert data.train[0].mean() == pytest.approx(0, abs=1e-6)
    assert data.train[0].std(correction=0) == pytest.approx(1)
    raw = np.frombuffer(gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes())[16:], np.uint8)
    order = data.train[0].numpy().ravel()
    assert np.corrcoef(order, raw)[0, 1] == pytest.approx(1)


def test_a_missing_file_says_what_to_install_or_where_to_point(folder, tmp_path_factory):
    (folder / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"no t10k-labels-idx1-ubyte or .*point `path` at the folder"):
        mnist(folder)
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        fashion_mnist(tmp_path_factory.mktemp("empty"))


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("train-images-idx3-ubyte.gz", cut, "train-images-idx3-ubyte.gz is truncated or damaged.*fetch it again"),
        ("train-labels-idx1-ubyte", cut, "has 21 bytes where its header promises 28"),
        ("t10k-labels-idx1-ubyte", lambda p: p.write_bytes(b"<html>"), "not an IDX file of 1 dimensions"),
        ("t10k-images-idx3-ubyte.gz", lambda p: p.write_bytes(b"<html>"), "truncated or damaged"),
        ("t10k-labels-idx1-ubyte", lambda p: p.write_bytes(b""), "not an IDX file"),
        ("t10k-labels-idx1-ubyte", lambda p: p.write_bytes(idx(np.zeros(4, np.uint8))), "5 images but 4 labels"),
    ],
)
def test_a_damaged_file_is_named(folder, file, damage, message):
    damage(folder / file)
    with pytest.raises(ValueError, match=message):
        mnist(folder)


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist_is_cropped_and_tested_on_a_part():
    whole, part = fashion_mnist(), fashion_mnist(crop=24, flip=True, held_out=7)
    assert whole.augmentation is None
    assert part.shape == (1, 24, 24)
    assert torch.equal(part.test[0], whole.test[0][:7, :, 2:26, 2:26])
    assert torch.equal(part.test[1], whole.test[1][:7])
    # What is added around an image is as black as its own corners.
    corner = fashion_mnist(crop=30, padding=1, held_out=1).test[0][0, 0, 0, 0]
    assert corner == whole.train[0].min()
    with pytest.raises(ValueError, match="held_out=10001: give a whole number, from 1 to 10000"):
        fashion_mnist(held_out=10_001)
    with pytest.raises(ValueError, match="crop=29"):
        fashion_mnist(crop=29)


@pytest.mark.skipif(not FASHION_MNIST.exists(), reason="Debian's package dataset-fashion-mnist is not installed")
def test_fashion_mnist():
    data = fashion_mnist()
    assert data.train[0].shape == (60_000, 1, 28, 28)
    assert torch.equal(torch.bincount(data.test[1]), torch.full((10,), 1000))


# CIFAR-10, in its official format, from patches of scikit-learn's photographs.

PATCHES = [
    photograph[top : top + 32, left : left + 32].transpose(2, 0, 1)
    for photograph in load_sample_images().images
    for top in range(0, 384, 64)
    for left in range(0, 640, 64)
]
IMAGES, NUMBERS = np.stack(PATCHES), np.arange(120, dtype=np.uint8) * 7 % 10


@pytest.fixture
def cifar(tmp_path):
    write_cifar(tmp_path)
    return tmp_path


def write_cifar(folder):
    """Twenty images a file: a byte for the class, then the red, the green and the blue values, row by row."""
    for file, name in enumerate([*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]):
        part = slice(20 * file, 20 * file + 20)
        records = [bytes([label]) + image.tobytes() for image, label in zip(IMAGES[part], NUMBERS[part], strict=True)]
        (folder / name).write_bytes(b"".join(records))


def test_cifar10_has_the_values_of_its_files_in_their_order(cifar):
    data = cifar10(cifar, crop=32, padding=0, flip=False, records=20)
    assert data.augmentation is None
    scale = lambda images: (images / 255 - np.reshape(MEAN, (3, 1, 1))) / np.reshape(DEVIATION, (3, 1, 1))  # noqa: E731
    np.testing.assert_allclose(data.train[0].numpy(), scale(IMAGES[:100]), atol=1e-6)
    np.testing.assert_allclose(data.test[0].numpy(), scale(IMAGES[100:]), atol=1e-6)
    assert data.train[1].tolist() == NUMBERS[:100].tolist()
    assert data.test[1].tolist() == NUMBERS[100:].tolist()
    assert data.classes == 10
    assert data.names is None


def test_cifar10_where_its_archive_unpacks(tmp_path):
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    write_cifar(folder)
    (folder / "batches.meta.txt").write_text("airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n")
    data = cifar10(tmp_path, crop=28, padding=0, records=20)
    assert len(cifar10(tmp_path, records=20, held_out=3).test[0]) == 3
    assert data.names[3] == "cat"
    assert len(data.names) == data.classes
    assert data.shape == (3, 28, 28)
    centre = cifar10(folder, crop=32, padding=0, flip=False, records=None).test[0][:, :, 2:30, 2:30]
    assert torch.equal(data.test[0], centre)


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("data_batch_3.bin", cut, "data_batch_3.bin has 61,453 bytes, not 20 images of 3,073"),
        ("data_batch_5.bin", lambda p: p.write_bytes(p.read_bytes()[: 19 * 3073]), "has 58,387 bytes, not 20 images"),
        ("test_batch.bin", lambda p: p.write_bytes(b""), "test_batch.bin has 0 bytes"),
        ("data_batch_1.bin", lambda p: p.write_bytes(b"\x0a" * 20 * 3073), "image 0 has the label 10, not 0 to 9"),
    ],
)
def test_a_damaged_file_of_cifar10_is_named(cifar, file, damage, message):
    damage(cifar / file)
    with pytest.raises(ValueError, match=message):
        cifar10(cifar, records=20)


def test_a_missing_file_of_cifar10_is_named(cifar):
    with pytest.raises(ValueError, match="has 61,460 bytes, not 10,000 images"):
        cifar10(cifar)
    (cifar / "data_batch_4.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"no data_batch_4.bin in .*: point `folder` at"):
        cifar10(cifar, records=20)
    (cifar / "data_batch_4").write_bytes(b"a pickle")
    with pytest.raises(FileNotFoundError, match="data_batch_4 is of the Python version; fetch CIFAR-10's binary"):
        cifar10(cifar, records=20)


@pytest.mark.parametrize("augmentation", [CropAndFlip(28), CropAndFlip(32, 4, fill=(-1.0, -2.0, -3.0))], ids=str)
def test_crops_are_those_that_were_drawn(augmentation):
    images = torch.randn(2, 5, 3, 32, 32, dtype=torch.float64)
    labels = torch.arange(10).view(2, 5)
    found, kept = augmentation((images, labels), [np.random.default_rng((0, w)) for w in range(2)])
    assert kept is labels
    crop, padding = augmentation.crop, augmentation.padding
    for worker in range(2):
        top, left, mirrored = np.random.default_rng((0, worker)).random((3, 5))
        for i, image in enumerate(images[worker].numpy()):
            fill = np.reshape(augmentation.fill, (-1, 1, 1))
            padded = np.broadcast_to(fill, (3, 32 + 2 * padding, 32 + 2 * padding)).copy()
            padded[:, padding : padding + 32, padding : padding + 32] = image
            places = 33 + 2 * padding - crop
            y, x = int(top[i] * places), int(left[i] * places)
            expected = padded[:, y : y + crop, x : x + crop]
            expected = expected[:, :, ::-1] if mirrored[i] >= 0.5 else expected
            np.testing.assert_allclose(found[worker, i].numpy(), expected, rtol=1e-12)


def test_every_place_and_both_sides_are_drawn_as_often():
    # An image whose pixels say where they are.
    image = torch.arange(32 * 32.0).view(1, 1, 1, 32, 32).expand(1, 4000, 1, 32, 32)
    (found,) = CropAndFlip(28)((image,), [np.random.default_rng(0)])
    corners = found[0, :, 0, 0, [0, -1]]
    mirrored = corners[:, 0] > corners[:, 1]
    places = torch.bincount(corners.min(1).values.long(), minlength=32 * 5).view(-1, 32)[:5, :5]
    assert mirrored.double().mean().item() == pytest.approx(0.5, abs=0.04)
    assert places.sum() == 4000
    assert (places - 160).abs().max() < 5 * math.sqrt(160)
    (same,) = CropAndFlip(28, flip=False)((image[:, :50],), [np.random.default_rng(0)])
    assert (same[0, :, 0, 0, 0] < same[0, :, 0, 0, -1]).all()


def test_augmented_batches_depend_on_seed_worker_and_step_alone(cifar):
    data = cifar10(cifar, records=20)

    def feed(seed=3):
        return Feed(data, 4, 5, 2, seed, torch.device("cpu"))

    together, alone = feed(), feed()
    asked = [together(range(4), step) for step in range(6)]
    assert asked[0][0][0].shape == (4, 5, 3, 32, 32)
    for step in reversed(range(6)):  # as a run that was resumed, or a rank that holds one row
        for worker in (2, 0, 3, 1):
            for mine, all_of_them in zip(alone([worker], step), asked[step], strict=True):
                for one, several in zip(mine, all_of_them, strict=True):
                    assert torch.equal(one[0], several[worker])
    assert not torch.equal(feed(4)(range(4), 0)[0][0], asked[0][0][0])
    # 25 samples a worker are five batches of five: step 0 and step 5 show some of the same images, otherwise cropped.
    assert not set(asked[0][0][0][0].flatten(1).sum(1).tolist()) & set(asked[5][0][0][0].flatten(1).sum(1).tolist())


# ---- folders of images


def photograph(height, width):
    """An image whose red says how far right a pixel is, and whose green how far down; blue is 51."""
    across, down = np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height)
    return Image.fromarray(np.stack([255 * across, 255 * down, np.full_like(across, 51)], -1).round().astype(np.uint8))


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A wide image of each of three classes, in several formats; held-out ones are high, and more."""
    folder = tmp_path_factory.mktemp("photographs")
    for part, size, count in (("train", (120, 200), 1), ("val", (160, 96), 4)):
        for number, name in enumerate(("ant", "bee", "cat")):
            (folder / part / name).mkdir(parents=True)
            for image in range(count):
                suffix = ("png", "JPEG", "jpg")[number]
                photograph(*size).save(folder / part / name / f"{image}.{suffix}", quality=98)
            (folder / part / name / "about.txt").write_text("not an image")
    return folder


def values(images):
    """Pixels in [0, 1]."""
    mean, deviation = (torch.tensor(each).view(3, 1, 1) for each in (PHOTOGRAPHS_MEAN, PHOTOGRAPHS_DEVIATION))
    return images * deviation + mean


def test_folders_of_images(photographs):
    data = image_folder(photographs, crop=32, resized=40)
    assert (len(data), data.classes, data.names, data.shape) == (3, 3, ("ant", "bee", "cat"), (3, 32, 32))
    assert data.train[1].tolist() == [0, 1, 2]
    assert data.test[1].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert image_folder(photographs, held_out=6).test[1].tolist() == [0, 0, 1, 1, 2, 2]
    images, labels = data.augmentation.held_out(data.test)
    assert labels is data.test[1]
    # In the middle, 32 of the 40 pixels to which the shorter side was resized: of 66 along the other.
    steps = (torch.arange(32) + 0.5) / 32 - 0.5
    for image in values(images):
        assert image[0].mean(0).numpy() == pytest.approx(0.5 + steps.numpy() * 32 / 40, abs=0.02)
        assert image[1].mean(1).numpy() == pytest.approx(0.5 + steps.numpy() * 32 / 40 * 96 / 160, abs=0.02)
        assert image[2].numpy() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(data.augmentation.held_out((images, labels))[0], images)
    # They are read when they are evaluated.
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 3))
    expected = classification((images, labels))(model)
    assert data.evaluation()(model) == pytest.approx(expected)


def test_random_parts_of_images(photographs):
    data = image_folder(photographs, crop=16, resized=16)
    numbers = torch.zeros(2, 300, dtype=torch.long)
    images, _ = data.augmentation((numbers, numbers), [np.random.default_rng((0, w)) for w in range(2)])
    assert images.shape == (2, 300, 3, 16, 16)
    pixels = values(images.flatten(0, 1))
    across, down = pixels[:, 0].mean(1), pixels[:, 1].mean(2)  # [n, 16]
    mirrored = across[:, 0] > across[:, -1]
    # From the first pixel's middle to the last one's are 15 of 16 parts of a side.
    width, height = ((each[:, -1] - each[:, 0]).abs() * 16 / 15 for each in (across, down))
    for worker in range(2):
        random = np.random.default_rng((0, worker))
        tries, mirror = random.random((10, 4, 300)), random.random(300)
        assert mirrored[300 * worker :][:300].tolist() == (mirror < 0.5).tolist()
        for i in range(300):
            for a, b, left, top in tries[:, :, i]:  # noqa: B007
                area, ratio = 0.08 + 0.92 * a, 0.75 + (4 / 3 - 0.75) * b
                if max(area * ratio, area / ratio) <= 1:
                    break
            at = 300 * worker + i
            expected = math.sqrt(area * ratio), math.sqrt(area / ratio)
            assert (width[at].item(), height[at].item()) == pytest.approx(expected, abs=0.03)
            middle = left * (1 - expected[0]) + expected[0] / 2, top * (1 - expected[1]) + expected[1] / 2
            assert (across[at].mean().item(), down[at].mean().item()) == pytest.approx(middle, abs=0.02)


def test_parts_that_do_not_fit_are_drawn_again():
    drawn = np.full((10, 4, 1), 0.99)  # nearly all of the area, a third wider than the image
    assert _parts(drawn).tolist() == [[0, 0, 1, 1]]
    drawn[3, :2] = 0.0
    left, top, right, bottom = _parts(drawn)[0]
    assert (right - left, bottom - top) == pytest.approx((math.sqrt(0.08 * 0.75), math.sqrt(0.08 / 0.75)))


def test_mistakes_in_folders_of_images(photographs, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no train in .*: give the folder with train and val"):
        image_folder(tmp_path)
    (tmp_path / "train" / "ant").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"no image in .*ant: give one that ends in \.jpeg"):
        image_folder(tmp_path)
    for part, name in (("train", "ant"), ("val", "bee")):
        (tmp_path / part / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / part / name / "0.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match="different classes: ant, bee"):
        image_folder(tmp_path)
    (tmp_path / "val" / "bee").rename(tmp_path / "val" / "ant")
    with pytest.raises(ValueError, match=r"0\.png is not an image, or damaged .*; fetch it again"):
        assert image_folder(tmp_path).shape
    with pytest.raises(ValueError, match="held_out=13: give a whole number, from 1 to 12"):
        image_folder(photographs, held_out=13)
    with pytest.raises(ValueError, match="resized=8: give a whole number, at least 16"):
        image_folder(photographs, crop=16, resized=8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CropAndFlip(0), "crop=0"),
        (lambda: CropAndFlip(8, padding=-1), "padding=-1"),
        (lambda: DIGITS.augmented(CropAndFlip(9)), r"crop=9 with padding=0 does not fit .* \(1, 8, 8\)"),
        (lambda: python_source(size=2000).augmented(CropAndFlip(9)), r"images are \(channels, height, width\)"),
    ],
)
def test_crops_that_do_not_fit(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Texts.


def test_python_source_is_the_text_of_this_python():
    data = python_source(length=64, size=400_000)
    assert platform.python_version() in str(data)
    inputs, following = data.train
    assert inputs.shape == following.shape == (len(data), 64)
    assert inputs.dtype == torch.uint8
    assert 0.98 * 400_000 < len(data) * 64 <= 400_000
    stdlib = Path(sysconfig.get_path("stdlib"))
    for sample in (0, len(data) // 2, len(data) - 1):
        group = data.names[data.groups[sample]]
        assert group in sys.stdlib_module_names
        files = sorted((stdlib / group).rglob("*.py")) if (stdlib / group).is_dir() else [stdlib / f"{group}.py"]
        read = bytes([int(inputs[sample, 0]), *following[sample].tolist()])
        contents = [file.read_bytes() for file in files]
        # A sample may run from one file of a package into the next.
        assert any(read in content for content in contents) or any(
            read[:i] and any(c.endswith(read[:i]) for c in contents) and any(c.startswith(read[i:]) for c in contents)
            for i in range(1, 65)
        )
    assert torch.equal(inputs[:, 1:], following[:, :-1])


def test_python_source_is_the_same_every_time_and_splits_by_file():
    small, large = python_source(size=50_000), python_source(size=200_000, test_size=None)
    again = python_source(size=50_000)
    assert all(torch.equal(a, b) for a, b in zip(small.train, again.train, strict=True))
    assert len(large.test[0]) > len(small.test[0]) > 0
    assert len(small.test[0]) <= 100_000 / 128
    train = {bytes(row.tolist()) for row in large.train[0]}
    seen = sum(bytes(row.tolist()) in train for row in large.test[0])
    assert seen < 0.02 * len(large.test[0])


def test_files_of_ones_own(tmp_path):
    for number in range(40):
        folder = tmp_path / f"author{number % 4}"
        folder.mkdir(exist_ok=True)
        (folder / f"{number}.txt").write_text(f"{number} " * 50)
    (tmp_path / "loose.txt").write_text("alone " * 50)
    data = text(tmp_path, length=10)
    assert set(data.names) - {"loose"} == {"author0", "author1", "author2", "author3"}
    assert data.test is not None
    shards = data.partitioned("groups").shards(4)
    for worker in range(4):
        mine = data.groups[shards.whole(worker, 0)].unique()
        others = [data.groups[shards.whole(other, 0)].unique() for other in range(4) if other != worker]
        assert not np.intersect1d(mine, torch.cat(others)).size
    with pytest.raises(FileNotFoundError, match=r"no files \*\*/\*.md in .*another `folder` or `pattern`"):
        text(tmp_path, "**/*.md")
    with pytest.raises(ValueError, match="bytes of text for training hold no sample of length=9999"):
        text(tmp_path, length=9999)
    with pytest.raises(ValueError, match="length=0"):
        text(tmp_path, length=0)


def test_bits_a_byte_are_those_of_the_predicted_bytes():
    data = python_source(length=16, size=20_000, test_size=2_000)
    frequencies = torch.bincount(data.train[1].flatten().long(), minlength=256).double() + 1

    class Unigram(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.logits = torch.nn.Parameter(frequencies.log())

        def forward(self, x):
            return self.logits.expand(*x.shape, 256)

    probabilities = frequencies / frequencies.sum()
    found = language(data.test)(Unigram())
    bits = -probabilities[data.test[1].long()].log2().mean().item()
    assert found["bits_per_byte"] == pytest.approx(bits)
    assert found["loss"] == pytest.approx(bits * math.log(2))
    assert found["accuracy"] == pytest.approx((data.test[1] == frequencies.argmax()).double().mean().item())
    assert cross_entropy(Unigram(), data.test).item() == pytest.approx(found["loss"])


# LIBSVM.

LINES = "# made here\n+1 1:0.5 3:-2\n\n-1 2:1e-3 # a comment\n+1 4:7\n-1 1:1\n"


def test_a_libsvm_file(tmp_path):
    (tmp_path / "a.svm").write_text(LINES)
    (tmp_path / "a.t.gz").write_bytes(gzip.compress(b"-1 5:1\n"))
    data = libsvm(tmp_path / "a.svm", test=tmp_path / "a.t.gz")
    expected = [[0.5, 0, -2, 0, 0], [0, 0.001, 0, 0, 0], [0, 0, 0, 7, 0], [1, 0, 0, 0, 0]]
    assert torch.equal(data.train[0], torch.tensor(expected))
    assert data.train[1].tolist() == [1, 0, 1, 0]
    assert data.test[0].tolist() == [[0, 0, 0, 0, 1]]
    assert data.test[1].tolist() == [0]
    assert data.names == ("-1", "1")
    assert data.classes == data.outputs == 2
    real = libsvm(tmp_path / "a.svm", targets="real")
    assert real.train[1].tolist() == [1, -1, 1, -1]
    assert real.classes is None
    assert real.outputs == 1
    assert real.evaluation() is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LINES + "+1 0.5 2:1\n", "line 7: .* is not `label index:value"),
        (LINES + "+1 3:1 2:1\n", "line 7: .*sorted"),
        (LINES + "yes 1:1\n", "line 7: 'yes 1:1' is not .*could not convert"),
        (LINES * 600 + "+1 2:x\n", f"line {6 * 600 + 1}: '\\+1 2:x' is not"),
        (LINES + "1 99999999999:1\n", "line 7: .*too large"),
        (LINES + "+1 3:nan\n", "line 7: a number that float32 cannot hold"),
        (LINES + "+1 3:1e300\n", "line 7: a number that float32 cannot hold"),
        (LINES + "0.5 3:1\n", "line 7: the label 0.5 is no class; for real targets say targets='real'"),
        (LINES + "1 4000000:1\n", "5 samples of 4,000,000 features take 0.1 GB as dense vectors, .* gigabytes=0.01"),
        ("", "has no samples"),
        ("1 1:1\n1 2:1\n", "every sample has the label 1"),
    ],
)
def test_a_libsvm_file_that_cannot_be_used(tmp_path, content, message):
    (tmp_path / "a.svm").write_text(content)
    with pytest.raises(ValueError, match=message):
        libsvm(tmp_path / "a.svm", gigabytes=0.01)


def test_a_libsvm_file_that_does_not_match_or_is_damaged(tmp_path):
    (tmp_path / "a.svm").write_text(LINES)
    (tmp_path / "a.t").write_text("# none\n-1 1:1\n2 1:1\n")
    with pytest.raises(ValueError, match=r"a.t, line 3: no sample of a.svm has the label 2"):
        libsvm(tmp_path / "a.svm", tmp_path / "a.t")
    (tmp_path / "a.gz").write_bytes(gzip.compress(LINES.encode() * 100)[:-20])
    with pytest.raises(ValueError, match=r"a.gz is truncated or damaged"):
        libsvm(tmp_path / "a.gz")
    with pytest.raises(FileNotFoundError, match=r"no file .*a.train"):
        libsvm(tmp_path / "a.train")


def test_regression_is_measured_by_its_loss():
    inputs, targets = torch.randn(700, 3), torch.randn(700)
    model = torch.nn.Linear(3, 1)
    expected = ((model(inputs)[:, 0] - targets) ** 2).mean().item() / 2
    assert regression((inputs, targets))(model) == {"loss": pytest.approx(expected, rel=1e-5)}
    data = Dataset((inputs, targets), (inputs, targets))
    assert data.evaluation(lambda outputs, y: (outputs[:, 0] - y).abs().mean())(model)["loss"] == pytest.approx(
        (model(inputs)[:, 0] - targets).abs().mean().item(), rel=1e-5
    )


def test_a_classifier_is_measured_by_the_loss_it_is_trained_on():
    model = tether.models.softmax((1, 8, 8), 10)
    found = DIGITS.evaluation(lambda outputs, labels: outputs.square().mean())(model)
    assert found["loss"] == pytest.approx(model(DIGITS.test[0]).square().mean().item(), rel=1e-5)
    assert found["accuracy"] == classification(DIGITS.test)(model)["accuracy"]


# Who holds what.


def test_holdings_count_what_simulated_workers_hold():
    data = DIGITS.partitioned("dirichlet", beta=0.3)
    shards, found = data.shards(7, seed=2), holdings(data, 7, seed=2)
    for worker in range(7):
        assert found.counts[worker].tolist() == np.bincount(LABELS[shards.whole(worker, 0)], minlength=10).tolist()
    assert found.sizes.tolist() == shards.sizes.tolist()
    assert found.names == tuple("0123456789")
    assert found.title == "digits, classes by Dirichlet(0.3)"


def columns(figure):
    """The heights of the bars for each worker, as they are drawn."""
    axes = figure.axes[0]
    return axes.patches[0].get_data().values if len(axes.patches) == 1 else [bar.get_height() for bar in axes.patches]


def test_a_picture_of_a_few_workers_has_bubbles_of_what_they_hold():
    found = holdings(DIGITS.partitioned("classes", classes=3), 8)
    figure = picture(found)
    _, grid = figure.axes
    assert list(columns(figure)) == found.sizes.tolist()
    (bubbles,) = grid.collections
    worker, group = bubbles.get_offsets().T.astype(int)
    assert sorted(zip(worker, group, strict=True)) == sorted(zip(*np.nonzero(found.counts), strict=True))
    held_by_bubble = found.counts[worker, group]
    np.testing.assert_allclose(bubbles.get_sizes() / bubbles.get_sizes().max(), held_by_bubble / held_by_bubble.max())
    assert [label.get_text() for label in grid.get_yticklabels()] == list("0123456789")


def test_a_picture_of_many_workers_is_a_map_of_shares():
    found = holdings(DIGITS.partitioned("dirichlet", beta=0.2), 100)
    figure = picture(found, dark=True)
    shares = figure.axes[1].collections[0].get_array().reshape(10, 100)
    np.testing.assert_allclose(shares.sum(0), 1)
    main = shares.argmax(0)
    assert (np.diff(main) >= 0).all()  # ordered by the class that they hold most of
    assert sorted(columns(figure)) == sorted(found.sizes)
    by_amount = picture(holdings(DIGITS.partitioned("power-law"), 100))
    assert (np.diff(columns(by_amount)) <= 0).all()


def test_a_picture_of_many_groups_puts_the_small_ones_together(tmp_path):
    groups = torch.arange(30).repeat_interleave(torch.arange(1, 31))
    data = Dataset((torch.zeros(len(groups)),), groups=groups, names=tuple(f"module{n}" for n in range(30)))
    figure = picture(holdings(data, 3))
    labels = [label.get_text() for label in figure.axes[1].get_yticklabels()]
    assert labels == [*(f"module{n}" for n in range(7, 30)), "7 others"]
    figure.savefig(tmp_path / "who.svg")
    assert "7 others" in (tmp_path / "who.svg").read_text()
    without = Dataset((torch.zeros(50, 2),)).partitioned("quantity")
    assert len(picture(holdings(without, 5)).axes) == 1
