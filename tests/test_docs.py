"""What the documents show is run as it stands there.

A page's blocks are run in their order, in a folder of the page's own that has the examples:

    ```python                   is executed; one that imports tether starts anew, others go on from the block before
    ```python title="x.py"      is written to that file (whatever its language is)
    ```python torchrun          a part of a script: executed by two processes in a script that has what it needs
    ```sh                       each command is carried out
    ```text                     is what the block before has printed, but for what numbers differ by between machines
    <!-- not run: why -->       before a block: it is not run; these are counted

Blocks of no language are what is shown, and not checked.
"""

import doctest
import importlib
import inspect
import math
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic_core import PydanticUndefined

import tether
from tether import cli, theory
from tether.config import Config, load

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
README = PAGES[0].read_text()
BLOCK = re.compile(r"(?:<!-- not run: (.+) -->\n)?^```(\S*) ?(.*)\n((?s:.*?))^```$", re.MULTILINE)


@dataclass(frozen=True)
class Block:
    page: str
    line: int  # its first, counted from 1
    reason: str | None  # why it is not run
    language: str
    option: str
    text: str

    @property
    def file(self) -> str | None:
        """What it is written to."""
        found = re.fullmatch(r'title="(.+)"', self.option)
        return found and found[1]


def blocks(page: Path) -> list[Block]:
    text, name = page.read_text(), page.relative_to(ROOT).as_posix()
    return [
        Block(name, text.count("\n", 0, found.start(4)) + 1, found[1], found[2], found[3], found[4])
        for found in BLOCK.finditer(text)
    ]


BLOCKS = {page.relative_to(ROOT).as_posix(): blocks(page) for page in PAGES}
LOOPS = [block for each in BLOCKS.values() for block in each if block.option == "torchrun"]
NOT_RUN = {
    "README.md": 1,
    "docs/benchmarks.md": 7,
    "docs/cluster.md": 3,
    "docs/examples.md": 4,
    "docs/index.md": 1,
    "docs/planning.md": 1,
    "docs/tutorials/plan.md": 1,
}
"""How many blocks of a page are not run; the page says why."""


class Page:
    """Where blocks are run: what they have defined so far, and what the last of them has printed."""

    def __init__(self, monkeypatch, capsys):
        self._monkeypatch, self._capsys = monkeypatch, capsys
        self.names: dict = {}
        self.printed = ""

    def run(self, block: Block) -> None:
        if block.file:
            Path(block.file).write_text(block.text)
        elif block.language == "python":
            self._execute(block)
        elif block.language == "sh":
            self.printed = "".join(map(self._carry_out, commands(block.text)))
        elif block.language == "text":
            assert alike(block.text, self.printed), f"{block.page}, line {block.line}: it printed\n{self.printed}"

    def _execute(self, block: Block) -> None:
        if re.search("^import tether$", block.text, re.MULTILINE):
            self.names = {"__name__": block.page}
        lines = "\n" * (block.line - 1) + block.text  # so that an error names the line of the page
        exec(compile(lines, block.page, "exec"), self.names)
        self.printed = self._capsys.readouterr().out

    def _carry_out(self, words: list[str]) -> str:
        if words[0] == "tether":
            self._monkeypatch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as stopped:
                cli.main()
            assert not stopped.value.code, words
            out = self._capsys.readouterr().out
            assert out, words
            return out
        start = {"python": [], "torchrun": ["-m", "torch.distributed.run", "--standalone"]}[words[0]]
        return subprocess_output([sys.executable, *start, *words[1:]])


def commands(text: str) -> list[list[str]]:
    lines = text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def subprocess_output(command: list[str], **options) -> str:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **options)
    assert not done.returncode, done.stdout + done.stderr[-3000:]
    assert "WARNING" not in done.stderr
    return done.stdout


def alike(shown: str, printed: str) -> bool:
    """Whether the words are the same, and numbers within a tenth."""
    number = r"(-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)"
    ours, theirs = (re.split(number, " ".join(text.split())) for text in (shown, printed))
    if ours[::2] != theirs[::2]:
        return False
    values = ([float(each.replace(",", "")) for each in parts[1::2]] for parts in (ours, theirs))
    return all(math.isclose(a, b, rel_tol=0.1, abs_tol=1e-12) for a, b in zip(*values, strict=True))


@pytest.mark.xdist_group("commands")
@pytest.mark.parametrize("name", [name for name, each in BLOCKS.items() if any(b.language for b in each)])
def test_page(name, tmp_path, monkeypatch, capsys):
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "116")
    page = Page(monkeypatch, capsys)
    for block in BLOCKS[name]:
        if block.reason is None and block.option != "torchrun":
            page.run(block)


def test_nothing_is_left_out_silently():
    left_out = Counter(block.page for each in BLOCKS.values() for block in each if block.reason)
    assert left_out == NOT_RUN
    for page in PAGES:
        outside = BLOCK.sub("", page.read_text())
        assert not re.search(r"^    \S*(sudo|tether|torchrun|python|pip) ", outside, re.MULTILINE), page


def test_there_is_something_to_run():
    kinds = Counter(block.language for each in BLOCKS.values() for block in each if block.reason is None)
    assert kinds["python"] >= 12
    assert kinds["sh"] >= 8
    assert kinds["text"] >= 3
    assert len(LOOPS) >= 2


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [("0.95 of it", "0.93  of\nit", True), ("0.95 of it", "0.93 of them", False), ("1,000 s", "1300 s", False)],
)
def test_alike(shown, printed, same):
    assert alike(shown, printed) == same


def test_the_reference_has_every_command_and_key():
    page = (ROOT / "docs" / "reference" / "command.md").read_text()
    for command in cli.app.registered_commands:
        assert f"| `tether {command.callback.__name__}` | {inspect.getdoc(command.callback).splitlines()[0]} |" in page
    for name, key in Config.model_fields.items():
        (row,) = re.findall(rf"^\| `{name}` \|.*$", page, re.MULTILINE)
        assert (key.description or "") in row
        assert key.is_required() or key.default in (None, PydanticUndefined) or f"| `{key.default}` |" in row


def with_examples():
    """Modules whose docstrings have examples."""
    files = {each.name: Path(each.module_finder.path, *each.name.split(".")[-1:]) for each in MODULES}
    files = {name: path / "__init__.py" if path.is_dir() else path.with_suffix(".py") for name, path in files.items()}
    return [name for name, path in files.items() if ">>> " in path.read_text()]


MODULES = list(pkgutil.walk_packages(tether.__path__, "tether."))


@pytest.mark.parametrize("name", with_examples())
def test_examples_of_docstrings(name):
    module = importlib.import_module(name)
    names = {"np": np, "torch": torch, "math": math} | {each: getattr(theory, each) for each in theory.__all__}
    run = 0
    for described in vars(module).values():
        if getattr(described, "__module__", None) == name and ">>> " in (text := inspect.getdoc(described) or ""):
            test = doctest.DocTestParser().get_doctest(text, names | vars(module), name, None, None)
            run += len(test.examples)
            assert not doctest.DocTestRunner(verbose=False).run(test).failed
    assert run == inspect.getsource(module).count(">>> ")


def test_the_reference_has_every_public_name():
    pages = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    described = re.findall(r"^::: (\S+)$", pages, re.MULTILINE)
    assert len(described) == len(set(described))
    modules = ("data", "diagnostics", "models", "periods", "theory", "topology")
    public = {f"tether.{name}" for name in tether.__all__ if name not in modules}
    inside = {f"tether.{name}.{each}" for name in modules for each in getattr(tether, name).__dict__.get("__all__", ())}
    in_topology = {f"tether.theory.{name}" for name in theory.__all__ if hasattr(tether.topology, name)}
    assert public | inside - in_topology <= set(described)
    assert len(tether.__all__) < 40


AROUND_A_LOOP = """
import pathlib
import torch, tether
import torch.distributed as dist
from torch import nn

dist.init_process_group("gloo")
torch.manual_seed(0)
model = nn.Linear(4, 3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
data = torch.Generator().manual_seed(dist.get_rank())
loader = [(torch.randn(8, 4, generator=data), torch.randint(0, 3, (8,), generator=data)) for _ in range(30)]
loss_of = lambda model, x, y: nn.functional.cross_entropy(model(x), y)
evaluate = lambda model: None

{loop}
assert rounds.count == 30
everyone = [torch.empty_like(model.weight) for _ in range(dist.get_world_size())]
dist.all_gather(everyone, model.weight.detach())
assert all(torch.equal(weight, everyone[0]) for weight in everyone)
dist.destroy_process_group()
# A thread of Gloo's that is still there when the interpreter ends can abort it.
left = [task.read_text().strip() for task in pathlib.Path("/proc/self/task").glob("*/comm")]
assert not [name for name in left if "gloo" in name], left
"""


@pytest.mark.xdist_group("real")
@pytest.mark.parametrize("loop", LOOPS, ids=lambda block: f"{block.page}:{block.line}")
def test_loop_under_torchrun(loop, tmp_path):
    (tmp_path / "loop.py").write_text(AROUND_A_LOOP.format(loop=loop.text))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    subprocess_output([*start, "loop.py"], cwd=tmp_path)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_examples_are_valid(path):
    assert load(path).workers == tomllib.loads(path.read_text())["workers"]


def test_the_readme_names_every_method():
    from tether.methods import METHODS

    for name, method in METHODS.items():
        assert f"| `{name}` | `{method.__name__}(" in README


def test_the_readme_names_what_configs_may_name():
    from tether.data import DATASETS, PARTITIONS
    from tether.models import MODELS, OBJECTIVES

    for key, known in (
        ("data", DATASETS),
        ("data.partition", PARTITIONS),
        ("model", MODELS),
        ("objective", OBJECTIVES),
    ):
        (row,) = re.findall(rf"^\| `{key}` \| (.*) \|$", README, re.MULTILINE)
        assert re.findall("`(.*?)`", row) == list(known)


def test_links_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
