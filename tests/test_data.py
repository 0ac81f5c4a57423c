"""Data sets, and who holds what of them."""

import gzip
import struct

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tether
from tether.data import (
    IID,
    Assigned,
    Batches,
    Classes,
    Dataset,
    Dirichlet,
    FixedShards,
    Reshuffled,
    fashion_mnist,
    mnist,
)
from tether.data.mnist import FASHION_MNIST

DIGITS = tether.data.digits()
LABELS = DIGITS.train[1].numpy()


def held(partition, workers=8, seed=0):
    shards = partition.shards(len(LABELS), LABELS, workers, seed)
    return [shards.order(worker, 0) for worker in range(workers)]


@pytest.mark.parametrize("partition", [IID(), Classes(2), Classes(3), Dirichlet(0.3), Dirichlet(100.0)], ids=str)
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


def test_an_epoch_goes_through_the_shard_once():
    shards = FixedShards([np.arange(10), np.arange(10, 31)], seed=0)
    batches = Batches(shards, 5)
    first = np.concatenate([batches.indices(slice(0, 1), number)[0] for number in range(2)])
    second = np.concatenate([batches.indices(slice(0, 1), number)[0] for number in range(2, 4)])
    assert sorted(first) == sorted(second) == list(range(10))
    assert list(first) != list(second)
    # 21 samples make 4 batches of 5; the 21st rests until the next epoch's shuffle.
    other = np.concatenate([batches.indices(slice(1, 2), number)[0] for number in range(4)])
    assert len(set(other)) == 20


def test_batches_do_not_depend_on_what_was_asked_before():
    shards = IID().shards(100, None, 4, 7)
    forward, backward = Batches(shards, 5), Batches(IID().shards(100, None, 4, 7), 5)
    asked = [forward.indices(slice(0, 4), number) for number in range(20)]
    for number in reversed(range(20)):
        for worker in (3, 1, 0, 2):
            mine = backward.indices(slice(worker, worker + 1), number)
            assert np.array_equal(mine[0], asked[number][worker])


def test_reshuffled_epochs_are_disjoint_and_differ():
    shards = Reshuffled().shards(103, None, 4, 0)
    epochs = [[shards.order(worker, epoch) for worker in range(4)] for epoch in range(2)]
    for epoch in epochs:
        assert len(np.unique(np.concatenate(epoch))) == 100
    assert set(epochs[0][0]) != set(epochs[1][0])
    batches = Batches(shards, 10)  # 25 a worker: two batches an epoch, five samples left out
    assert set(batches.indices(slice(0, 1), 1)[0]) <= set(epochs[0][0])
    assert set(batches.indices(slice(0, 1), 2)[0]) <= set(epochs[1][0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: held(IID(), workers=2000), "1437 samples are too few.*fewer workers"),
        (lambda: held(Classes(11)), "11 classes a worker: the data has 10"),
        (lambda: held(Classes(0)), "0 classes a worker"),
        (lambda: held(Dirichlet(0.0)), "beta=0.0"),
        (lambda: held(Dirichlet(0.01), workers=30), "raise beta or lower min_samples"),
        (lambda: held(Dirichlet(1.0, min_samples=400)), "too few"),
        (lambda: Classes(2).shards(10, None, 2, 0), "no labels"),
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
def test_fashion_mnist():
    data = fashion_mnist()
    assert data.train[0].shape == (60_000, 1, 28, 28)
    assert torch.equal(torch.bincount(data.test[1]), torch.full((10,), 1000))
