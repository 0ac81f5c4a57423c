"""What the documents show is run as it stands there."""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from tether import cli
from tether.config import load

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)  # a loop under torchrun is `python no-run`
COMMANDS = re.findall(r"^tether .*$", README, re.MULTILINE)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.split("\n")[0])
def test_snippet(snippet):
    exec(compile(snippet, "README.md", "exec"), {"__name__": "README"})


@pytest.mark.parametrize("line", COMMANDS)
def test_command(line, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", shlex.split(line))
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert not stopped.value.code
    assert capsys.readouterr().out


def test_there_is_something_to_run():
    assert len(SNIPPETS) >= 2
    assert len(COMMANDS) >= 3


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.name)
def test_examples_are_valid(path):
    assert load(path).workers == tomllib.loads(path.read_text())["workers"]


def test_the_readme_names_every_method():
    from tether.methods import METHODS

    for name, method in METHODS.items():
        assert f"| `{name}` | `{method.__name__}(" in README


def test_links_lead_somewhere():
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
