"""Reports about real runs: how runs are read, figures, tables, and what is said of mistakes."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from colorspacious import cspace_convert, deltaE
from PIL import Image

from reports import METHODS, metrics, train
from tether import cli
from tether.config import ConfigError
from tether.report import read, style, write
from tether.report.curves import training_loss, window_of
from tether.report.leaders import trace
from tether.run_folder import RunFolder

pytestmark = pytest.mark.xdist_group("report")

FIGURES = ("training-loss", "test-accuracy", "test-loss", "consensus", "drift")


def command(monkeypatch, capsys, *arguments):
    """What the command prints, and what it says on failure."""
    monkeypatch.setattr(sys, "argv", ["tether", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return capsys.readouterr().out, stopped.value.code


# ---- what is read


def test_runs_are_named_by_what_differs(tmp_path):
    def names(*places):
        return [(each.name, each.group) for each in read(places)]

    for rate in (0.1, 0.2):
        for method in ("local", "easgd"):
            train(tmp_path / "rates" / f"{rate}" / method, method=method, optimizer={"name": "SGD", "lr": rate})
    assert names(tmp_path / "rates" / "0.1") == [("local", ""), ("easgd", "")]
    assert names(tmp_path / "rates" / "0.1" / "local") == [("local", "")]
    assert names(tmp_path / "rates" / "0.1" / "local", tmp_path / "rates" / "0.2" / "local") == [
        ("lr 0.1", ""),
        ("lr 0.2", ""),
    ]
    assert names(tmp_path / "rates") == [
        ("local (lr 0.1)", "lr 0.1"),
        ("easgd (lr 0.1)", "lr 0.1"),
        ("local (lr 0.2)", "lr 0.2"),
        ("easgd (lr 0.2)", "lr 0.2"),
    ]
    assert style.looks(read([tmp_path / "rates"])) == [(0, 0), (1, 0), (0, 1), (1, 1)]
    train(tmp_path / "again", method="local")
    shutil.copytree(tmp_path / "again", tmp_path / "copy")
    assert names(tmp_path / "again", tmp_path / "copy") == [("again", ""), ("copy", "")]
    train(tmp_path / "scheduled", scheduler={"name": "StepLR", "step_size": 2})
    assert names(tmp_path / "again", tmp_path / "scheduled")[0] == ("no scheduler", "")
    # The same run twice is one.
    assert names(tmp_path / "again", tmp_path / "again") == [("local", "")]


def test_losses_are_averaged_over_windows(folder):
    (several,) = read([folder / "four" / "sync"])
    losses = np.stack(metrics(folder / "four" / "sync").query("best_worker != best_worker").losses.to_list())
    assert losses.shape == (60, 4)
    for window in (1, 7, 20):
        curve = training_loss(several, window)
        wanted = [losses[start : start + window].mean(0) for start in range(0, 60, window)]
        assert several.steps[curve.at].tolist() == [min(start + window, 60) for start in range(0, 60, window)]
        assert curve.y == pytest.approx([each.mean() for each in wanted])
        assert curve.high == pytest.approx([np.percentile(each, 90) for each in wanted])
    # A record of five steps weighs five times as much as one of one step.
    (rare,) = read([folder / "four" / "local"])
    assert training_loss(rare, 60).y == pytest.approx([np.mean(rare.losses[~rare.evaluated])])
    assert window_of([several]) == 1
    assert window_of([several, rare]) == 60 // 50


def test_a_worker_that_was_left_out_leaves_the_mean(tmp_path):
    place = train(tmp_path / "run", steps=10)
    lines = [json.loads(line) for line in (place / "metrics.jsonl").read_text().splitlines()]
    for line in lines[2:]:
        line["losses"][3] = None
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (one,) = read([place])
    assert training_loss(one, 1).y[-1] == pytest.approx(np.mean(lines[-2]["losses"][:3]))
    assert np.isfinite(training_loss(one, 10).y).all()


def test_leaders_of_groups(folder):
    (fleet,) = read([folder / "four" / "fleet"])
    found = trace(fleet)
    rounds = [each for each in fleet.leaders if each is not None]
    assert any(isinstance(each, list) for each in rounds)
    assert any(isinstance(each, int) for each in rounds)
    for at, who in enumerate(fleet.leaders):
        leading = [] if who is None else [who] if isinstance(who, int) else who
        covering = (found.since < at) & (at <= found.until) & (found.of_all == isinstance(who, int))
        assert sorted(found.worker[covering]) == sorted(leading) or who is None


# ---- other formats


def test_tables(folder, tmp_path):
    files = write([folder / "four"], tmp_path / "tables", format="csv")
    assert [file.name for file in files] == ["summary.csv", "history.csv", "workers.csv", "holdings.csv"]
    summary, history, workers, holdings = map(pd.read_csv, files)
    assert summary.run.tolist() == list(METHODS)
    for name in METHODS:
        records = metrics(folder / "four" / name)
        mine = history[history.run == name]
        assert mine.step.tolist() == records.step.tolist()
        assert mine.bytes_a_worker.tolist() == (records.bytes / 4).tolist()
        assert mine.consensus.tolist() == pytest.approx(records.consensus.tolist())
        assert mine.loss.tolist() == pytest.approx([np.mean(each) for each in records.losses])
        evaluations = records.center.map(lambda each: each.get("accuracy"))
        assert mine.center_accuracy.tolist() == pytest.approx(evaluations.tolist(), nan_ok=True)
        theirs = workers[workers.run == name].pivot(index="record", columns="worker", values="drift")
        assert theirs.to_numpy() == pytest.approx(np.stack(records.drift.to_list()))
        held = holdings[holdings.run == name].pivot(index="worker", columns="group", values="samples")
        assert held.to_numpy().tolist() == RunFolder(folder / "four" / name).holdings["counts"]


@pytest.mark.parametrize("format", ["png", "svg"])
def test_figures(format, folder, tmp_path, monkeypatch, capsys):
    out, code = command(monkeypatch, capsys, "report", folder / "four", "--format", format, "--out", tmp_path / "out")
    assert code == 0
    files = {file.stem: file for file in (tmp_path / "out").iterdir()}
    assert out.strip() == f"{tmp_path / 'out'}: {len(files)} files"
    axes = ("steps", "rounds", "bytes", "seconds")
    curves = {f"{figure}-{axis}" for figure in FIGURES for axis in axes}
    assert files.keys() == curves | {"leaders-leader", "leaders-fleet", "holdings-1"}
    for file in files.values():
        if format == "png":
            with Image.open(file) as image:
                assert len(image.convert("RGB").getcolors(1_000_000)) > 20
        else:
            assert "<path" in file.read_text()
            assert "<dc:date>" not in file.read_text()


def test_legends_hide_no_curve_and_are_not_cut_off(folder, tmp_path, monkeypatch):
    drawings = []
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, *args, **options: drawings.append(self))
    write([folder / "four"], tmp_path / "out", "png")
    with_legends = [drawing for drawing in drawings if drawing.legends]
    assert len(with_legends) == len(FIGURES) * 4
    for drawing in with_legends:
        drawing.draw_without_rendering()
        (legend,), (axes,) = drawing.legends, drawing.axes
        box = legend.get_window_extent()
        assert [text.get_text() for text in legend.get_texts()] == list(METHODS)
        assert box.y0 >= axes.get_window_extent().y1
        assert box.x0 >= 0
        assert box.x1 <= drawing.bbox.x1
        assert box.y1 <= drawing.bbox.y1


# ---- what goes wrong


def test_mistakes(folder, tmp_path, monkeypatch, capsys):
    def said(*arguments):
        return command(monkeypatch, capsys, "report", *arguments)[1]

    assert said(tmp_path / "nowhere") == f"tether: {tmp_path}/nowhere: there is no such folder"
    assert "is not a run's folder, nor has it any in it" in said(tmp_path)
    assert "did you mean 'png'" in said(folder / "four", "--format", "pgn")
    (tmp_path / "file").write_text("")
    assert "give another place by --out" in said(folder / "four", "--out", tmp_path / "file" / "page.html")
    assert "give another place by --out" in said(folder / "four", "--out", tmp_path)
    with pytest.raises(ConfigError, match="report what"):
        write([])


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"index": 0, "st\n', r"line 1 is damaged: "),
        ('{"index": 0}\n', r"line 1 is no record: 'step' is missing"),
        ("7\n", r"line 1 is no record: "),
    ],
)
def test_damaged_metrics(line, problem, tmp_path):
    place = train(tmp_path / "run")
    whole = (place / "metrics.jsonl").read_text()
    (place / "metrics.jsonl").write_text(line + whole)
    with pytest.raises(ConfigError, match=rf"metrics\.jsonl: {problem}"):
        read([place])
    # The end of the last line was not written before the process was stopped.
    (place / "metrics.jsonl").write_text(whole[:-10])
    (found,) = read([place])
    assert len(found.steps) == whole.count("\n") - 1
    record = json.loads(whole.splitlines()[0])
    (place / "metrics.jsonl").write_text(json.dumps(record | {"losses": [0.1] * 3}) + "\n")
    with pytest.raises(ConfigError, match=r"losses of shape \(3,\) in a run of 4 workers"):
        read([place])


@pytest.mark.parametrize(
    ("package", "format", "extra"),
    [("plotly", "html", "report"), ("jinja2", "html", "report"), ("matplotlib", "svg", "plot")],
)
def test_missing_extras(package, format, extra, folder, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    needed = rf"needs? {package}\S*, which is not installed: pip install 'tether\[{extra}\]'"
    with pytest.raises(ConfigError, match=needed):
        write([folder / "four"], format=format)


@pytest.mark.parametrize(
    ("palette", "paper", "contrast"), [(style.LIGHT, "#ffffff", 3.0), (style.DARK, "#14171c", 4.5)]
)
def test_colours_can_be_told_apart(palette, paper, contrast):
    def components(colour):
        return np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255

    def luminance(colour):  # WCAG 2.2, relative luminance
        linear = cspace_convert(components(colour), "sRGB1", "sRGB1-linear")
        return linear @ [0.2126, 0.7152, 0.0722] + 0.05

    assert f"--paper: {paper};" in (Path(style.__file__).parent / "page.css").read_text()
    for colour in palette:
        between = sorted([luminance(colour), luminance(paper)])
        assert between[1] / between[0] >= contrast
    for kind in ("protanomaly", "deuteranomaly", "tritanomaly", None):
        seen = [components(colour) for colour in palette]
        if kind:
            space = {"name": "sRGB1+CVD", "cvd_type": kind, "severity": 100}
            seen = [np.clip(cspace_convert(each, space, "sRGB1"), 0, 1) for each in seen]
        apart = [deltaE(a, b, input_space="sRGB1") for at, a in enumerate(seen) for b in seen[:at]]
        assert min(apart) > 10
