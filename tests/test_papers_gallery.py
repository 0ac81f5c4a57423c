"""The page of results: made of what experiments left, and of nothing else."""

import json
import shutil
import sys
from pathlib import Path

import pytest

from tether import cli
from tether.config import ConfigError
from tether.papers import EXPERIMENTS, Claim, Experiment, Outcome, Setting
from tether.papers.gallery import write_gallery
from tether.papers.reproduce import current_commit, reproduce

ROOT = Path(__file__).parent.parent


def perform(setting):
    """A line."""
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().plot([0, setting.seed])
    large = Figure()
    large.subplots().plot(range(20_000), [n * 7919 % 1009 for n in range(20_000)], "o")
    claims = [
        Claim.number("a number | with *marks*", "1.50", 1.5001, "it rounds"),
        Claim("one that fails", False, 2.0),
        Claim("one of other data", None),
    ]
    short, long = [{"x": 1, "y": 0.123456789}], [{"x": n} for n in range(50)]
    return Outcome(claims, {"line": figure, "cloud": large}, {"short": short, "long": long}, ["a <note>"])


@pytest.fixture
def small(monkeypatch):
    """Two experiments, of which one needs data."""
    there = {
        "leader/one": Experiment("leader/one", "figure 1", "A line", perform),
        "leader/two": Experiment("leader/two", "figure 2", "A photograph", perform, data="ImageNet"),
    }
    monkeypatch.setattr("tether.papers.command.EXPERIMENTS", there)
    monkeypatch.setattr("tether.papers.gallery.EXPERIMENTS", there)
    return there


def command(monkeypatch, capsys, *words):
    monkeypatch.setattr(sys, "argv", ["tether", *map(str, words)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return capsys.readouterr().out, stopped.value.code


def test_all_of_them_and_the_page(small, monkeypatch, capsys, tmp_path):
    out, code = command(monkeypatch, capsys, "reproduce", "--all", "--out", tmp_path / "runs")
    assert not code
    assert "left out: leader/two needs ImageNet" in out
    page = tmp_path / "docs" / "results.md"
    page.parent.mkdir()
    out, code = command(monkeypatch, capsys, "gallery", tmp_path / "runs", "--out", page)
    assert not code
    assert "experiments: 1" in out
    text = page.read_text()
    outcome = json.loads((tmp_path / "runs" / "leader" / "one" / "outcome.json").read_text())
    came_by = f"`tether reproduce leader/one --seed 0`, commit {outcome['commit'][:10]}"
    assert text.count(came_by) == 3  # a figure, a figure, and all of it
    assert str(tmp_path) not in text
    assert "| [leader/one](#leaderone)<br><small>figure 1</small> | 1 | 1 | 1 | " in text
    assert "| all | 1 | 1 | 1 | " in text
    under = "<br><small>ours 1.5001, the paper's 1.50, ratio 1.00007; it rounds</small>"
    assert rf"| holds | a number \| with \*marks\*{under} |" in text
    assert "| does not hold | one that fails<br><small>ours 2</small> |" in text
    assert "- a &lt;note&gt;" in text
    assert "| 1 | 0.123457 |" in text
    assert "long.csv](results/leader/one/long.csv): 50 rows" in text
    assert "- `leader/two` (figure 2) needs ImageNet." in text
    kept = {path.name for path in (page.parent / "results" / "leader" / "one").iterdir()}
    assert kept == {"line.svg", "cloud.png", "short.csv", "long.csv", "outcome.json"}
    assert str(tmp_path) not in (page.parent / "results" / "leader" / "one" / "outcome.json").read_text()

    shutil.rmtree(tmp_path / "runs")
    page.unlink()
    command(monkeypatch, capsys, "gallery", "--out", page)
    assert page.read_text() == text


def test_what_stands_is_not_done_again(small, monkeypatch, capsys, tmp_path):
    """Where it is of this very commit; then only what is missing is carried out."""
    monkeypatch.setattr("tether.papers.command.current_commit", lambda: "abc")
    monkeypatch.setattr("tether.papers.reproduce.current_commit", lambda: "abc")
    command(monkeypatch, capsys, "reproduce", "--all", "--out", tmp_path)
    out, _ = command(monkeypatch, capsys, "reproduce", "--all", "--out", tmp_path)
    assert "leader/one stands in" in out
    monkeypatch.setattr("tether.papers.command.current_commit", lambda: "abd")
    out, _ = command(monkeypatch, capsys, "reproduce", "--all", "--out", tmp_path)
    assert "stands in" not in out


def test_one_that_fails_keeps_none_from_being_carried_out(small, monkeypatch, capsys, tmp_path):
    def fail(setting):
        raise RuntimeError("out of luck")

    broken = {"leader/zero": Experiment("leader/zero", "figure 0", "Nothing", fail)} | small
    monkeypatch.setattr("tether.papers.command.EXPERIMENTS", broken)
    out, code = command(monkeypatch, capsys, "reproduce", "--all", "--out", tmp_path)
    assert "out of luck" in out
    assert code == "tether: 1 failed: leader/zero; what they said stands above"
    assert (tmp_path / "leader" / "one" / "outcome.json").exists()


def test_mistakes(small, tmp_path, monkeypatch, capsys):
    _, code = command(monkeypatch, capsys, "reproduce", "leader/one", "--all")
    assert "leave leader/one away" in str(code)
    with pytest.raises(ConfigError, match="no experiment has an outcome there"):
        write_gallery(tmp_path, tmp_path / "results.md")
    reproduce(small["leader/one"], Setting(tmp_path / "runs" / "one"))
    path = tmp_path / "runs" / "one" / "outcome.json"
    path.write_text(path.read_text()[:-50])
    with pytest.raises(ConfigError, match=r"outcome\.json is damaged"):
        write_gallery(tmp_path, tmp_path / "results.md")
    path.write_text('{"experiment": "leader/three"}')
    with pytest.raises(ConfigError, match="leader/three, which is no experiment any more"):
        write_gallery(tmp_path, tmp_path / "results.md")


def test_the_page_of_this_repository_is_made_of_its_folder(tmp_path):
    shutil.copytree(ROOT / "docs" / "results", tmp_path / "results")
    names = write_gallery(None, tmp_path / "results.md")
    assert set(names) <= set(EXPERIMENTS)
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text(), "run: tether gallery"


def test_commit_is_known_or_said_to_be_unknown():
    assert current_commit() is None or len(current_commit().partition(",")[0]) == 40
