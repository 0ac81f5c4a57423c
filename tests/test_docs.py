"""What the documents show is run as it stands there."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tether import cli
from tether.config import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
LOOPS = re.findall(r"```python torchrun\n(.*?)```", README, re.DOTALL)
COMMANDS = re.findall(r"^tether .*$", README, re.MULTILINE)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.split("\n")[0])
def test_snippet(snippet):
    exec(compile(snippet, "README.md", "exec"), {"__name__": "README"})


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
@pytest.mark.parametrize("loop", LOOPS, ids=lambda s: s.split("\n")[0])
def test_loop_under_torchrun(loop, tmp_path):
    (tmp_path / "loop.py").write_text(AROUND_A_LOOP.format(loop=loop))
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "loop.py"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert not done.returncode, done.stderr[-3000:]
    assert "WARNING" not in done.stderr


def test_commands(tmp_path, monkeypatch, capsys):
    """One after the other, in a folder with the examples: some look at what those before them have written."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(tmp_path)
    for line in COMMANDS:
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code, line
        assert capsys.readouterr().out, line


def test_there_is_something_to_run():
    assert len(SNIPPETS) >= 2
    assert len(LOOPS) >= 2
    assert len(COMMANDS) >= 3


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
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
