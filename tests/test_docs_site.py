"""The site of the documents, as it is built and as a browser shows it."""

import os
import subprocess
import sys
import threading
from collections import defaultdict
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from test_docs import alike

ROOT = Path(__file__).parent.parent

pytestmark = pytest.mark.xdist_group("report")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site; there are no warnings."""
    pytest.importorskip("mkdocs")
    place = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)]
    quiet = os.environ | {"NO_MKDOCS_2_WARNING": "1"}  # its theme says at each build what will come after it
    done = subprocess.run(build, cwd=ROOT, env=quiet, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return place


class Links(HTMLParser):
    """What a page refers to, what can be referred to in it, and what is loaded with it."""

    def __init__(self, page: Path):
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.loaded: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if tag in ("img", "script", "iframe") and found.get("src"):
            self.loaded.append(found["src"])
        if tag == "link" and found.get("rel") != "canonical" and found.get("href"):
            self.loaded.append(found["href"])


@pytest.fixture(scope="module")
def pages(site):
    found = {path: Links(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}
    assert len(found) > 20
    return found


def test_no_link_is_broken(pages):
    broken = defaultdict(list)
    for page, found in pages.items():
        for link in found.links + found.loaded:
            to = urlsplit(link)
            if to.scheme or to.netloc:
                continue
            target = (page.parent / unquote(to.path)).resolve() if to.path else page
            inside = to.fragment and target.suffix == ".html"
            if not target.is_file() or (inside and unquote(to.fragment) not in pages[target].anchors):
                broken[page.name].append(link)
    assert not broken


def test_nothing_is_loaded_from_elsewhere(pages):
    assert not [each for found in pages.values() for each in found.loaded if urlsplit(each).netloc]


def test_every_page_is_in_the_menu(site, pages):
    menu = {(site / unquote(urlsplit(link).path)).resolve() for link in pages[site / "index.html"].links}
    assert set(pages) <= menu | {site / "index.html"}


@pytest.fixture(scope="module")
def address(site):
    """Where the site is served on this machine."""
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(site))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.mark.parametrize("width", [390, 1280])
def test_pages_fit_and_ask_for_nothing_else(width, site, pages, address, browser):
    context = browser.new_context(viewport={"width": width, "height": 844})
    page = context.new_page()
    asked, failed, complaints = [], [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda answer: failed.append(answer.url) if answer.status >= 400 else None)
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    too_wide, missing = [], []
    for path in pages:
        name = path.relative_to(site).as_posix()
        page.goto(address + name, wait_until="load")
        if page.evaluate("document.documentElement.scrollWidth") > width:
            too_wide.append(name)
        missing += page.evaluate(
            "[...document.images].filter(each => each.checkVisibility() && !each.naturalWidth).map(each => each.src)"
        )
    context.close()
    assert not too_wide
    assert not missing
    assert not failed
    assert not complaints
    assert all(url.startswith(address) for url in asked)


def test_search_finds_a_name(address, browser):
    page = browser.new_page()
    page.goto(address, wait_until="networkidle")
    query, found = page.locator("input[name=query]").first, page.locator(".md-search-result__item a[href*='periods']")
    for _ in range(40):  # typed before the script listens, a word is lost: a person would type it again
        query.fill("FollowDrif")
        query.press("t")  # the script looks at the field when a key goes up
        page.wait_for_timeout(1_500)
        if found.count():
            break
    assert found.count() > 0
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_one_picture_of_each_pair_is_shown(scheme, address, browser):
    page = browser.new_page(color_scheme=scheme)
    page.goto(address + "concepts.html", wait_until="load")
    shown = page.evaluate("[...document.images].filter(each => each.checkVisibility()).map(each => each.src)")
    assert len(shown) >= 5
    assert all(f"-{scheme}.svg" in source for source in shown)
    page.close()


def test_pictures_are_what_the_script_draws(tmp_path):
    drawn = subprocess.run(
        [sys.executable, "docs/pictures.py", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert drawn.returncode == 0, drawn.stderr
    kept = {path.name: path.read_text() for path in (ROOT / "docs" / "pictures").iterdir()}
    assert kept.keys() == {path.name for path in tmp_path.iterdir()}
    for name, text in kept.items():
        assert alike(text, (tmp_path / name).read_text()), f"{name}: python docs/pictures.py"
