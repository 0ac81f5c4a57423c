"""The config and the command, as a person uses them."""

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import tether
from tether import cli
from tether.config import Config, ConfigError, load
from tether.run import load_data, load_method, load_model, run

CONFIG = """
workers = 4
steps = 20
batch_size = 16
period = 5

[data]
name = "digits"
partition = { name = "classes", classes = 3 }

[model]
name = "mlp"
hidden = [12]

[optimizer]
name = "SGD"
lr = 0.1

[methods.tight]
name = "easgd"
alpha = 0.35

[methods.lattice]
name = "torus"
period = 2

[methods.sparse]
name = "decentralized"
topology = { name = "random-regular", degree = 2, lazy = 0.25 }
"""


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(CONFIG)
    return file


def command(capsys, monkeypatch, *arguments):
    """What the command prints, and what it says on failure."""
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setattr(sys, "argv", ["tether", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return capsys.readouterr().out, stopped.value.code


def test_compare(path, capsys, monkeypatch):
    names = ["sync", "local", "easgd", "ring", "leader", "tight", "lattice", "sparse"]
    out, code = command(capsys, monkeypatch, "compare", path, "--methods", ",".join(names))
    assert code == 0
    assert "digits, 3 classes a worker, 4 workers, 20 local steps each" in out
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line.split() and line.split()[0] in names}
    assert list(rows) == names
    d = 64 * 12 + 12 + 12 * 10 + 10
    assert [int(rows[name][3]) for name in ("sync", "local", "lattice")] == [20, 4, 10]
    mean = 2 * 3 / 4 * d * 4 / 1e6  # an all-reduce of d float32 among four, in MB a worker
    assert float(rows["sync"][4]) == pytest.approx(20 * mean, abs=0.006)
    assert float(rows["local"][4]) == pytest.approx(4 * mean, abs=0.006)
    assert float(rows["ring"][4]) == pytest.approx(4 * 2 * d * 4 / 1e6, abs=0.006)
    assert all(re.fullmatch(r"\d+\.\d%", row[1]) and re.fullmatch(r"\d+\.\d%", row[2]) for row in rows.values())


def test_compare_is_what_simulate_gives(path):
    """The config's words mean what the library's arguments mean."""
    config = load(path)
    result = run(config, "tight")
    data = tether.data.digits().partitioned("classes", classes=3)
    again = tether.simulate(
        load_model(config, data),
        tether.EASGD(5, alpha=0.35),
        data,
        workers=4,
        objective=tether.models.cross_entropy,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.1),
        steps=20,
        batch_size=16,
    )
    assert torch.equal(result.rows, again.rows)


def test_train(path, capsys, monkeypatch):
    out, code = command(capsys, monkeypatch, "train", path, "--method", "leader", "--set", "steps=10")
    assert code == 0
    assert "10 local steps" in out
    assert re.search(r"rounds\s+2\b", out)
    assert re.search(r"test accuracy of center\s+\d", out)


def test_methods(capsys, monkeypatch):
    out, code = command(capsys, monkeypatch, "methods")
    assert code == 0
    for name in tether.methods.METHODS:
        assert re.search(rf"^{name}  ", out, re.MULTILINE)
    assert "z <- (1 - m alpha) z + m alpha mean(x)" in out
    assert "parameters: period, alpha=None, beta=None" in out
    out, code = command(capsys, monkeypatch, "methods", "easgd")
    assert "stable for 0 < alpha < 2/(m+1)" in out
    out, code = command(capsys, monkeypatch, "methods", "ring")
    assert "ring as a method is decentralized" in out
    out, code = command(capsys, monkeypatch, "methods", "easdg")
    assert "did you mean 'easgd'" in code


def test_a_method_that_diverges_does_not_take_the_others_with_it(path, capsys, monkeypatch):
    out, code = command(capsys, monkeypatch, "compare", path, "--methods", "local,easgd", "--set", "optimizer.lr=1e18")
    assert code == 0
    assert len(re.findall(r"(local|easgd) diverged: worker \d, local step \d", out)) == 2
    out, code = command(capsys, monkeypatch, "train", path, "--set", "optimizer.lr=1e18")
    assert re.match(r"tether: worker \d: the loss or a parameter is not finite at local step \d", code)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("workers = 4", "worker = 4"), r"there is no key 'worker'; did you mean 'workers'"),
        (("workers = 4", ""), r"run.toml: the key 'workers' is missing"),
        (("workers = 4", "workers = 'four'"), r"workers = 'four': input should be a valid integer"),
        (("workers = 4", "workers = 0"), r"workers = 0: .*greater than or equal to 1"),
        (("period = 5", "period = 0"), r"method: period=0|methods.tight: period=0"),
        (("steps = 20", "steps = 20\norder = 'mix-first'"), r"order = 'mix-first': .*did you mean 'mix-then-step'"),
        (('name = "digits"', 'name = "digit"'), r"data.name: there is no 'digit'; did you mean 'digits'"),
        (('name = "digits"', 'name = "digits"\nroot = "x"'), r"data: there is no key 'root'"),
        (('name = "digits"', 'name = "fashion-mnist"\npath = "/nowhere"'), r"fashion-mnist: no train-images"),
        (('"classes"', '"clases"'), r"data.partition.name: there is no 'clases'; did you mean 'classes'"),
        (("classes = 3", "clases = 3"), r"data.partition: there is no key 'clases'; did you mean 'classes'"),
        (("classes = 3", "classes = 'all'"), r"data.partition: classes = 'all': "),
        (("classes = 3", "classes = 30"), r"30 classes a worker: the data has 10"),
        (('"mlp"', '"mpl"'), r"model.name: there is no 'mpl'; did you mean 'mlp'"),
        (("hidden", "hiden"), r"model: there is no key 'hiden'; did you mean 'hidden'"),
        (("[12]", "'wide'"), r"model: hidden = 'wide'"),
        (('"SGD"', '"SDG"'), r"optimizer.name: there is no 'SDG'; did you mean 'SGD'"),
        (("lr = 0.1", "learning_rate = 0.1"), r"optimizer: there is no key 'learning_rate'"),
        (("lr = 0.1", "lr = -1.0"), r"optimizer: Invalid learning rate: -1.0"),
        (('"SGD"', '"Adafactor"'), r"not elementwise"),
        (("alpha = 0.35", "alhpa = 0.35"), r"methods.tight: there is no key 'alhpa'; did you mean 'alpha'"),
        (("alpha = 0.35", "alpha = 0.45"), r"tight: alpha=0.45: .*0 < alpha < 0.4"),
        (('"easgd"', '"easdg"'), r"methods.tight.name: there is no 'easdg'; did you mean 'easgd'"),
        (("degree = 2", "degre = 2"), r"methods.sparse.topology: there is no key 'degre'; did you mean 'degree'"),
        (('"random-regular"', '"random"'), r"methods.sparse.topology.name: there is no 'random'"),
        (("[model]", "[model"), r"run.toml is not TOML"),
        (("batch_size = 16", "batch_size = 1000"), r"batch_size=1000: worker \d holds only"),
        (("batch_size = 16", "batch_size = 'all'"), r"batch_size = 'all': .*did you mean 'full'|batch_size = 'all'"),
        (('partition = { name = "classes", classes = 3 }', "partition = 3"), r"data.partition = 3: give a name"),
        (('"digits"', "[]"), r"data.name: which one\? There are: digits"),
        (("[12]", "[0]"), r"model: hidden=\[0\]"),
        (("[12]", "[-1]"), r"model: hidden=\[-1\]"),
        (('"easgd"', "['easgd']"), r"methods.tight.name: which one\?"),
        (("alpha = 0.35", "alpha = true"), r"methods.tight: alpha = True: "),
        (("period = 2", "period = '2'"), r"methods.lattice: period = '2': "),
        (("lr = 0.1", "lr = 0.1\nmomentm = 0.9"), r"^tether: optimizer: there is no key 'momentm'; did you mean 'mom"),
        (("[model]", "[scheduler]\nname='StepLR'\nstep_size=0\n[model]"), r"tight: integer modulo by zero"),
        (("steps = 20", "steps = 20\ndevice = 'gpu'"), r"device: 'gpu' cannot be used here"),
    ],
    ids=lambda value: value[1].replace("\n", " ") if isinstance(value, tuple) else "",
)
def test_a_mistake_names_itself_its_place_and_what_is_near(path, capsys, monkeypatch, change, message):
    assert change[0] in CONFIG
    path.write_text(CONFIG.replace(*change, 1))
    _, code = command(capsys, monkeypatch, "compare", path, "--methods", "tight,sparse,lattice")
    assert re.search(message, str(code)), code
    assert str(code).startswith("tether: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "tigth"], "no method is called 'tigth'; did you mean 'tight'"),
        (["--methods", "local", "--set", "optimizer.lrr=1"], "optimizer: there is no key 'lrr'"),
        (["--methods", "local", "--set", "steps"], "give KEY=VALUE"),
        (["--methods", "local", "--set", "steps.more=1"], "'steps' is not a table"),
        (["--methods", "cooperative"], "method: the key 'W' is missing"),
        (["--methods", "local", "--set", "overlap=6"], "local: overlap=6 is longer than the period"),
        (["--methods", ","], "name at least one method"),
    ],
    ids=str,
)
def test_a_mistake_on_the_command_line(path, capsys, monkeypatch, arguments, message):
    _, code = command(capsys, monkeypatch, "compare", path, *arguments)
    assert message in str(code)


def test_mistakes_show_before_the_first_run(path, capsys, monkeypatch):
    monkeypatch.setattr("tether.run.simulate", None)
    _, code = command(capsys, monkeypatch, "compare", path, "--methods", "local,sync", "--set", "overlap=2")
    assert "sync: overlap=2 is longer than the period" in str(code)
    _, code = command(capsys, monkeypatch, "compare", path, "--methods", "local,hypercube", "--set", "workers=6")
    assert "hypercube of 6 workers" in str(code)


def test_a_missing_config(capsys, monkeypatch, tmp_path):
    _, code = command(capsys, monkeypatch, "train", tmp_path / "none.toml")
    assert "none.toml: No such file" in str(code)


def test_the_first_data_set_that_is_installed(path):
    config = load(path, {"data.name": "['mnist', 'digits']", "data.partition": "iid"})
    with pytest.raises(ConfigError, match="data: the key 'path' is missing"):
        load_data(config)
    config = load(path, {"data.name": "['fashion-mnist', 'digits']"})
    assert load_data(config).name in ("fashion-mnist", "digits")


PARTS = {
    "text": """
        data = { name = "python-source", length = 16, size = 20_000, test_size = 2_000, partition = "contiguous" }
        model = { name = "transformer", width = 8, layers = 1, heads = 2, dropout = 0.1 }
    """,
    "vectors": """
        data = { name = "libsvm", path = "a.svm", test = "a.svm" }
        model = "logistic"
    """,
    "numbers": """
        data = { name = "libsvm", path = "a.svm", test = "a.svm", targets = "real", partition = "quantity" }
        model = "softmax"
    """,
    "relu": """
        data = "digits"
        model = { name = "relu", width = 20 }
        objective = "squared-error"
    """,
}


@pytest.mark.parametrize("name", PARTS)
def test_data_models_and_objectives_by_name(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    rng = torch.Generator().manual_seed(0)
    points = torch.randn(60, 3, generator=rng)
    lines = [f"{1 if x[0] > 0 else -1} 1:{x[0]:.4f} 2:{x[1]:.4f} 3:{x[2]:.4f}" for x in points.tolist()]
    (tmp_path / "a.svm").write_text("\n".join(lines))
    (tmp_path / "run.toml").write_text(
        "workers = 3\nsteps = 60\nbatch_size = 4\nperiod = 5\nevaluate_every = 30\n"
        + textwrap.dedent(PARTS[name])
        + "optimizer = { name = 'SGD', lr = 0.05 }"
    )
    result = run(load(tmp_path / "run.toml"), "local")
    first, last = (record.center for record in result.history if record.center)
    assert last["loss"] < first["loss"] < 10
    expected = {"text": {"loss", "accuracy", "bits_per_byte"}, "numbers": {"loss"}}
    assert set(last) == expected.get(name, {"loss", "accuracy"})
    if name == "relu":  # half the squared distance to a one in ten places, not a cross-entropy
        model, (images, labels) = result.center(), tether.data.digits().test
        distance = (model(images) - torch.nn.functional.one_hot(labels, 10)).square().sum(1).mean() / 2
        assert last["loss"] == pytest.approx(distance.item(), rel=1e-5)


def test_evaluations_of_nothing(path, tmp_path):
    (tmp_path / "a.svm").write_text("1 1:1\n-1 1:2\n" * 20)
    data = f"{{ name = 'libsvm', path = '{tmp_path / 'a.svm'}' }}"
    config = load(path, {"data": data, "model": "logistic", "evaluate_every": "5"})
    with pytest.raises(ConfigError, match=r"evaluate_every = 5: a.svm has no held-out samples"):
        run(config, "local")


def test_partition(path, capsys, monkeypatch, tmp_path):
    out, code = command(capsys, monkeypatch, "partition", path, "--out", tmp_path / "who.png")
    assert code == 0
    assert "digits, 3 classes a worker, 4 workers, 1,437 samples" in out
    found = tether.data.holdings(load_data(load(path)), 4)
    rows = [line.split() for line in out.splitlines() if re.match(r"\s+[0-3] ", line)]
    assert [int(row[1]) for row in rows] == found.sizes.tolist()
    assert all(line.count("%") == 3 for line in out.splitlines() if re.match(r"\s+[0-3] ", line))
    assert (tmp_path / "who.png").read_bytes().startswith(b"\x89PNG")
    out, _ = command(
        capsys, monkeypatch, "partition", path, "--set", "workers=100", "--set", "data.partition=power-law"
    )
    held = tether.data.holdings(load_data(load(path, {"data.partition": "power-law"})), 100)
    spread = sorted(held.sizes)
    assert re.search(rf"samples +{spread[0]} +{spread[50]} +{spread[-1]}", out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "workers=2"], r"data.partition: 2 workers with 3 classes each cannot hold all 10"),
        (["--out", "who.doc"], r"--out who.doc: Format 'doc' is not supported"),
        (["--out", "nowhere/who.png"], r"--out nowhere/who.png: .*No such file"),
        (["--set", "data=cifar10"], r"data: the key 'folder' is missing"),
        (["--set", "data={name='cifar10', folder='.'}"], r"data: cifar10: no data_batch_1.bin in \.: point `folder`"),
        (["--set", "data={name='libsvm', path='none'}"], r"data: libsvm: no file none"),
        (["--set", "data={name='libsvm', path='none', targets='reel'}"], r"targets = 'reel': .*did you mean 'real'"),
    ],
    ids=str,
)
def test_a_partition_that_cannot_be_shown(path, capsys, monkeypatch, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    _, code = command(capsys, monkeypatch, "partition", path, *arguments)
    assert re.search(message, str(code)), code


def test_overrides(path):
    config = load(
        path, {"data.partition": "iid", "optimizer.lr": "0.5", "methods.ring.topology": "grid", "model": "cnn"}
    )
    assert config.data["partition"] == "iid"
    assert config.optimizer == {"name": "SGD", "lr": 0.5}
    assert config.model == {"name": "cnn"}
    assert isinstance(config, Config)


def test_names_of_methods(path):
    config = load(path)
    assert load_method(config, "local") == tether.LocalSGD(5)
    assert load_method(config, "ring") == tether.DecentralizedSGD(5, "ring")
    tables = load(path, {"methods.slow": "{ name = 'ring', lazy = 0.5, period = 3 }"})
    assert load_method(tables, "slow") == tether.DecentralizedSGD(3, tether.topology.Ring(lazy=0.5))
    assert load_method(config, "lattice") == tether.DecentralizedSGD(2, "torus")
    sparse = tether.DecentralizedSGD(5, tether.topology.RandomRegular(degree=2, lazy=0.25))
    assert load_method(config, "sparse") == sparse


def test_schedulers_and_precision(path):
    settings = {"scheduler": "{ name = 'StepLR', step_size = 5, gamma = 0.0 }", "dtype": "float64"}
    config = load(path, settings)
    result = run(config, "local")
    assert result.rows.dtype == torch.float64
    milestones = {"scheduler": "{ name = 'MultiStepLR', milestones = [5], gamma = 0.0 }", "dtype": "float64"}
    assert torch.equal(result.rows, run(load(path, milestones), "local").rows)
    shorter = run(load(path, settings | {"steps": "5"}), "local")
    assert torch.equal(result.rows, shorter.rows)  # from step 5 on the learning rate is 0


def test_full_batches(path):
    assert run(load(path, {"batch_size": "full", "steps": "2"}), "local").rows.isfinite().all()


def test_help_does_not_import_torch():
    code = "import sys, tether.cli; assert 'torch' not in sys.modules and 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    script = Path(sys.executable).with_name("tether")
    assert "compare" in subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
