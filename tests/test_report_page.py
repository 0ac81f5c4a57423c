"""The page about real runs, as a browser shows it."""

import re

import numpy as np
import pytest

from reports import METHODS, config, give_holdings, metrics, train
from tether.config import ConfigError
from tether.report import style, write
from tether.result import NonFiniteLossError
from tether.run_folder import RunFolder

pytestmark = pytest.mark.xdist_group("report")


@pytest.fixture
def look(browser):
    """Opens a page without a network, and at the end finds that it asked for nothing and complained of nothing."""
    contexts, complaints, asked = [], [], []

    def look(path, width=1280, height=900, dark=False):
        size, scheme = {"width": width, "height": height}, "dark" if dark else "light"
        contexts.append(browser.new_context(offline=True, viewport=size, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.resolve().as_uri())
        page.wait_for_selector("html[data-drawn]", timeout=60_000)
        return page

    yield look
    for context in contexts:
        context.close()
    assert not complaints
    assert len(asked) == len(contexts)
    assert all(url.startswith("file:") for url in asked)


@pytest.fixture(scope="module")
def four(folder):
    (path,) = write([folder / "four"])
    assert path == folder / "four" / "report.html"
    assert path.stat().st_size < 6e6
    return path


def drawn(page, figure, run=None):
    """What is drawn in a figure: the lines that can be seen, by name."""
    return page.evaluate(
        """figure => Object.fromEntries([...document.querySelectorAll(`#${figure} .scatterlayer .trace`)]
            .filter(line => line.querySelector('.js-line')?.getAttribute('d'))
            .map(line => line.__data__[0].trace)
            .map(trace => [trace.name, {x: [...trace.x], y: [...trace.y], colour: trace.line.color}]))""",
        figure,
    )


FIGURES = ("training-loss", "test-accuracy", "test-loss", "consensus", "drift")


def test_the_table_has_the_final_numbers(four, look):
    page = look(four)
    heading = page.locator("h1").inner_text()
    assert heading == "sync, local, leader and fleet on digits"
    assert page.locator(".subtitle").inner_text() == "3 classes a worker, 4 workers, 60 local steps each"
    for name in METHODS:
        records, result = metrics(four.parent / name), RunFolder(four.parent / name).result
        cells = {
            cell.get_attribute("data-key"): cell.inner_text()
            for cell in page.locator(f"#summary tr:has(th:text-is('{name}')) td").all()
        }
        last = records.iloc[-1]
        assert cells["center-accuracy"] == f"{last.center['accuracy']:.1%}"
        assert cells["best-accuracy"] == f"{last.best['accuracy']:.1%}"
        assert float(cells["center-loss"]) == pytest.approx(last.center["loss"], rel=0.01)
        assert int(cells["rounds"]) == last["round"] == result["rounds"]
        assert float(cells["megabytes"]) == pytest.approx(result["bytes"] / 4e6, abs=0.006)
        assert float(cells["consensus"]) == pytest.approx(result["consensus"], rel=0.05)
        assert float(cells["seconds"]) == pytest.approx(result["seconds"], abs=0.06)
    assert not page.locator(".status").count()


def test_curves_are_the_metrics(four, look):
    page = look(four)
    curves = {figure: drawn(page, figure) for figure in FIGURES}
    for name in METHODS:
        records = metrics(four.parent / name)
        rounds = records[records.best_worker.isna()]
        evaluations = records[records.best_worker.notna()]
        assert curves["test-accuracy"][name]["x"] == evaluations.step.tolist() == [20, 40, 60]
        for of, label in (("center", name), ("best", f"{name}, best worker")):
            measured = [each["accuracy"] for each in evaluations[of]]
            assert curves["test-accuracy"][label]["y"] == pytest.approx(measured, rel=1e-5)
        # There is a fiftieth of 60 local steps between points, so each is a record.
        rounds = rounds.drop_duplicates("step")
        assert curves["consensus"][name]["x"] == rounds.step.tolist()
        assert curves["consensus"][name]["y"] == pytest.approx(rounds.consensus.tolist(), rel=1e-5)
        assert curves["drift"][name]["y"] == pytest.approx([np.median(each) for each in rounds.drift], rel=1e-5)
        assert curves["training-loss"][name]["y"] == pytest.approx([np.mean(each) for each in rounds.losses], rel=1e-5)


def test_what_is_drawn_is_where_it_belongs(four, look):
    """The end of a line, in pixels from the axes, is the last value."""
    page = look(four)
    last = metrics(four.parent / "local").iloc[-1]
    line = page.locator("#test-accuracy .scatterlayer .trace .js-line").nth(METHODS.index("local") * 2)
    x, y = map(float, re.findall(r"[-\d.]+", line.get_attribute("d"))[-2:])
    axes = "document.querySelector('#test-accuracy .plot')._fullLayout"
    at = page.evaluate(f"({{x, y}}) => [{axes}.xaxis.p2d(x), {axes}.yaxis.p2d(y)]", {"x": x, "y": y})
    assert at == pytest.approx([60, last.center["accuracy"]], rel=0.01)
    ticks = page.locator("#test-accuracy .ytick text").all_text_contents()
    assert all(re.fullmatch(r"\d+%", tick) for tick in ticks)


def test_pointing_at_a_curve_says_its_numbers(four, look):
    page = look(four)
    plot = page.locator("#test-accuracy .plot")
    plot.scroll_into_view_if_needed()
    place = plot.locator(".nsewdrag").first.bounding_box()
    at = page.evaluate("document.querySelector('#test-accuracy .plot')._fullLayout.xaxis.d2p(40)")
    page.mouse.move(place["x"] + at, place["y"] + place["height"] / 2)
    page.wait_for_selector("#test-accuracy .hoverlayer .legendtext")
    texts = page.locator("#test-accuracy .hoverlayer text").all_text_contents()
    measured = metrics(four.parent / "leader").query("step == 40 and best_worker == best_worker").iloc[0]
    assert any("40 local steps" in text for text in texts)
    assert any(text.split() == ["leader", f"{measured.center['accuracy']:.1%}"] for text in texts)


def test_a_click_on_the_legend_hides_a_run_everywhere(four, look):
    page = look(four)
    before = {figure: drawn(page, figure) for figure in FIGURES}
    assert all(set(METHODS) <= before[figure].keys() for figure in FIGURES)
    button = page.get_by_role("button", name="leader", exact=True)
    button.click()
    page.wait_for_selector("#leaders-2.hidden", state="attached")
    assert button.get_attribute("aria-pressed") == "false"
    for figure in FIGURES:
        left = {name for name in before[figure] if name.split(",")[0] != "leader"}
        assert drawn(page, figure).keys() == left < before[figure].keys()
    assert "hidden" in page.locator("#summary tr:has(th:text-is('leader'))").get_attribute("class")
    button.press("Enter")
    page.wait_for_selector("#leaders-2:not(.hidden)")
    assert {figure: drawn(page, figure) for figure in FIGURES} == before
    button.dblclick()
    page.wait_for_function("document.querySelectorAll('.run[aria-pressed=true]').length == 1")
    assert {name.split(",")[0] for name in drawn(page, "test-loss")} == {"leader"}
    button.dblclick()
    page.wait_for_function("document.querySelectorAll('.run[aria-pressed=true]').length == 4")
    assert {figure: drawn(page, figure) for figure in FIGURES} == before


def test_headings_sort_the_table(four, look):
    page = look(four)
    final = {name: metrics(four.parent / name).iloc[-1] for name in METHODS}

    def order():
        return page.locator("#summary tbody th").all_inner_texts()

    heading = page.get_by_role("button", name="test accuracy of center")
    heading.click()
    assert order() == sorted(METHODS, key=lambda name: -final[name].center["accuracy"])
    assert page.locator("th[aria-sort=descending]").inner_text() == "test accuracy of center"
    heading.click()
    assert order() == sorted(METHODS, key=lambda name: final[name].center["accuracy"])
    page.get_by_role("button", name="MB sent a worker").click()
    assert order() == sorted(METHODS, key=lambda name: -final[name].bytes)
    page.get_by_role("button", name="run", exact=True).click()
    assert order() == list(METHODS)
    assert page.locator("th[aria-sort]").count() == 1


def test_axes(four, look):
    page = look(four)
    records = metrics(four.parent / "local")
    evaluations = records[records.best_worker.notna()]
    wanted = {
        "rounds": ("rounds", evaluations["round"]),
        "bytes": ("MB sent by each worker", evaluations.bytes / 4e6),
        "seconds": ("seconds of training, without evaluations", evaluations.seconds),
    }
    for axis, (label, values) in wanted.items():
        page.locator(f"[name=axis][value={axis}]").check(force=True)
        page.wait_for_function("text => document.querySelector('#drift .xtitle').textContent == text", arg=label)
        assert {title.text_content() for title in page.locator(".xtitle").all()} == {label, "worker"}
        assert drawn(page, "test-accuracy")["local"]["x"] == pytest.approx(values.tolist(), rel=1e-5)
    page.locator("#drift .log").click()
    page.wait_for_function("document.querySelector('#drift .plot')._fullLayout.yaxis.type == 'linear'")
    assert page.evaluate("document.querySelector('#consensus .plot')._fullLayout.yaxis.type") == "log"


def test_dragging_zooms_every_plot(four, look):
    page = look(four)
    ranges = "[...document.querySelectorAll('.plot')].filter(plot => plot.linked).map(plot => plot.layout.xaxis.range)"
    everything = page.evaluate(ranges)
    plot = page.locator("#test-accuracy .plot")
    plot.scroll_into_view_if_needed()
    place = plot.locator(".nsewdrag").first.bounding_box()
    middle = place["y"] + place["height"] / 2
    page.mouse.move(place["x"] + 0.25 * place["width"], middle)
    page.mouse.down()
    page.mouse.move(place["x"] + 0.75 * place["width"], middle, steps=4)
    page.mouse.up()
    page.wait_for_function(f"{ranges}.every(range => range[0] > 10)")
    zoomed = page.evaluate(ranges)
    assert all(each == pytest.approx(zoomed[0]) for each in zoomed)
    page.mouse.dblclick(place["x"] + 0.5 * place["width"], middle)
    page.wait_for_function(f"{ranges}.every(range => range[0] == 0)")
    assert page.evaluate(ranges) == everything


def test_the_spread_of_workers(four, look):
    page = look(four)
    toggle = page.get_by_label("spread of workers")
    assert not toggle.is_checked()  # with four runs it would hide more than it shows
    toggle.check()
    page.wait_for_selector("#drift .js-fill", state="attached")
    bands = page.evaluate(
        "document.querySelector('#drift .plot').data.filter(each => each.name == 'sync, spread').map(each => each.y)"
    )
    drift = np.stack(metrics(four.parent / "sync").query("best_worker != best_worker").drift.to_list())
    for band, percentile in zip(bands, (10, 90), strict=True):
        assert band == pytest.approx(np.percentile(drift, percentile, axis=1), rel=1e-5)


def test_who_led_and_who_holds_what(four, look):
    page = look(four)
    leaders = metrics(four.parent / "leader").leader.dropna().astype(int).tolist()
    most = max(set(leaders), key=leaders.count)
    sentence = page.locator("#leaders-2 .finding").inner_text()
    assert sentence.startswith(f"Worker {most} led in {leaders.count(most)} of {len(leaders)} rounds; ")
    bars = page.evaluate("document.querySelector('#leaders-2 .plot').data[1]")
    stretches = [(x, y) for x, y in zip(bars["x"], bars["y"], strict=True) if x is not None]
    for begin, _, end in zip(*[iter(stretches)] * 3, strict=True):
        rounds = range(int(begin[0]) // 5, int(end[0]) // 5)
        assert {leaders[number] for number in rounds} == {begin[1]} == {end[1]}
    assert page.locator("#leaders-3 figcaption").inner_text().endswith("thin bars are leaders of groups.")
    held = RunFolder(four.parent / "sync").holdings
    assert page.locator(".holdings").count() == 1
    assert page.locator(".holdings .scatterlayer path.point").count() == np.count_nonzero(held["counts"])
    bars = page.evaluate("[...document.querySelector('.holdings .plot').data[0].y]")
    assert bars == np.sum(held["counts"], axis=1).tolist()


def test_light_and_dark(four, look):
    def background(page):
        return page.evaluate(
            """[document.body, document.querySelector('#drift .main-svg')]
                .map(each => getComputedStyle(each).backgroundColor)"""
        )

    for dark, palette in ((False, style.LIGHT), (True, style.DARK)):
        page = look(four, dark=dark)
        for _ in range(2):
            lightness = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 765 for colour in background(page)]
            assert all(each < 0.15 for each in lightness) if dark else all(each > 0.9 for each in lightness)
            assert [drawn(page, "drift")[name]["colour"] for name in METHODS] == list(palette[:4])
            page.get_by_role("button", name="Light or dark").click()
            page.wait_for_timeout(300)
            dark, palette = not dark, style.LIGHT if dark else style.DARK


@pytest.mark.parametrize("width", [390, 320])
def test_it_fits_a_phone(width, four, look):
    page = look(four, width=width, height=844)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for plot in page.locator(".plot .main-svg").all():
        box = plot.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= width
    names = page.locator("tbody th").first.bounding_box()  # room for more than a word a line
    assert width / 3 < names["width"] < width / 2
    page.get_by_role("button", name="MB sent a worker").click()  # the table scrolls by itself
    assert page.locator("th[aria-sort=descending]").inner_text() == "MB sent a worker"


def test_runs_that_are_not_whole(folder, tmp_path, look):
    (path,) = write([folder / "broken", folder / "four" / "local"], tmp_path / "page.html")
    page = look(path)
    step = metrics(folder / "broken" / "stopped").step.iloc[-1]
    error = RunFolder(folder / "broken" / "diverged").result["diverged"]
    assert page.locator("#summary .status").all_inner_texts() == [
        f"unfinished: at local step {step} of 40",
        f"diverged: worker {error['worker']}, local step {error['step']}",
    ]
    page.get_by_role("button", name="test accuracy of center").click()
    first = page.locator("#summary tbody tr").first
    assert "%" in first.inner_text()  # runs without the number come last
    assert len(page.locator("#summary tbody tr:has-text('–')").all()) == 2


def test_many_workers(tmp_path, look):
    """A line and a band, not a line a worker; a heat map, not a bubble a cell."""
    place = train(tmp_path / "many", workers=1000, steps=3, period=1, batch_size=1, model="softmax", method="leader")
    counts = np.random.default_rng(0).multinomial(60, np.full(10, 0.1), size=1000)
    give_holdings(place, counts, [f"class {name}" for name in range(10)], "digits, any")
    (path,) = write([place])
    assert path.stat().st_size < 6e6
    page = look(path)
    lines = page.evaluate("document.querySelector('#training-loss .plot').data.map(each => each.name)")
    assert lines == ["leader, spread", "leader, spread", "leader"]
    heat = page.evaluate("document.querySelector('.holdings .plot').data[1].z")
    assert np.array(heat).shape == (10, 400)
    assert np.array(heat).sum(0) == pytest.approx(np.ones(400), abs=0.01)
    assert page.locator(".holdings .heatmaplayer image").count() == 1


def test_a_name_is_not_markup(tmp_path, look):
    place = train(tmp_path / "<b>x</b>" / "one")
    hostile = "</script><script>document.title = 'hacked'</script><img src=x onerror=alert(1)>%{x}"
    give_holdings(place, [[1, 2]] * 4, [hostile, "b"], hostile)
    train(tmp_path / "<b>x</b>" / "two" / "one")
    (path,) = write([tmp_path / "<b>x</b>"])
    page = look(path)
    assert "hacked" not in page.title().split("·")[-1]
    assert page.evaluate("document.images.length") == 0
    assert any(hostile in heading for heading in page.locator(".holdings h2").all_inner_texts())


def test_a_run_without_records(tmp_path, look):
    RunFolder(tmp_path / "new").begin(config())
    with pytest.raises(ConfigError, match="new: no records yet, so there is nothing to report"):
        write([tmp_path / "new"])
    with pytest.raises(NonFiniteLossError):
        train(tmp_path / "gone", optimizer={"name": "SGD", "lr": 1e30})
    with pytest.raises(ConfigError, match="gone: diverged: worker 0, local step 2, so there is nothing to report"):
        write([tmp_path / "gone"])
    train(tmp_path / "other", method="sync")
    page = look(*write([tmp_path]))
    assert page.locator("#summary .status").all_inner_texts() == ["no records yet", "diverged: worker 0, local step 2"]


def test_who_waited(tmp_path, look):
    """Two steps of 0.1 s, or 0.2 s of the slow worker, and six hops of 0.01 s: 0.46 s a round."""
    clock = {"step": 0.1, "speeds": [1.0, 1.0, 1.0, 0.5], "latency": 0.01}
    train(tmp_path / "here", clock=clock, steps=8)
    (path,) = write([tmp_path / "here"])
    page = look(path)
    traces = page.evaluate("document.querySelector('#timeline-0 .plot').data.map(t => [t.name, [...t.x], [...t.y]])")
    spans = {name: {worker: [] for worker in range(4)} for name, _, _ in traces}
    for name, x, y in traces:
        for begin in range(0, len(x), 4):
            spans[name][y[begin]].append((x[begin], x[begin + 2]))
    rounds = 0.46 * np.arange(4)
    for worker, busy in ((0, 0.2), (3, 0.4)):
        computing = [span for start in rounds for span in (start, start + busy)]
        waiting = [span for start in rounds for span in (start + busy, start + 0.46)]
        assert np.ravel(spans["computing"][worker]) == pytest.approx(computing)
        assert np.ravel(spans["waiting"][worker]) == pytest.approx(waiting)
    assert not any(spans["sending"].values())
    waited = (3 * 0.26 + 0.06) / (4 * 0.46)
    assert (
        page.locator("#timeline-0 .finding").inner_text()
        == f"Workers waited for {waited:.0%} of their time; worker 3 waited least."
    )
    cells = {cell.get_attribute("data-key"): cell.inner_text() for cell in page.locator("#summary td").all()}
    assert (cells["virtual"], cells["waited"]) == ("1.840", f"{waited:.0%}")
    page.locator("[name=axis][value=virtual]").check(force=True)
    label = "virtual seconds, by the clock of the config"
    page.wait_for_function("text => document.querySelector('#drift .xtitle').textContent == text", arg=label)
    assert drawn(page, "drift")["local"]["x"] == pytest.approx([0.46, 0.92, 1.38, 1.84])


def test_messages_that_travel_while_workers_compute(tmp_path, look):
    """Sent at 0.2 s, arrived at 0.26; the next at 0.4. For the last round no step is left: all wait for it."""
    train(tmp_path / "here", clock={"step": 0.1, "latency": 0.01}, steps=8, overlap=1)
    (path,) = write([tmp_path / "here"])
    page = look(path)
    traces = page.evaluate("document.querySelector('#timeline-0 .plot').data.map(t => [t.name, [...t.x]])")
    (computing, waiting, sending) = (np.array([x for x in xs if x is not None], float) for _, xs in traces)
    assert waiting == pytest.approx(np.tile([0.8, 0.83, 0.86], 4))
    assert sorted(set(np.round(sending, 9)))[:3] == pytest.approx([0.2, 0.23, 0.26])
    assert computing.max() == pytest.approx(0.8)
    assert page.locator("#timeline-0 .finding").inner_text() == "Workers waited for 7% of their time."
