"""Shapes and types in annotations are checked at every call while the tests run."""

import os
import shutil

from jaxtyping import install_import_hook

install_import_hook("tether", "typechecker.check")

import pytest  # noqa: E402
import torch  # noqa: E402

# Several test processes share the cores.
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """Runs of four methods by the command, one that was stopped, and one that diverged; made once."""
    import reports

    place = tmp_path_factory.mktemp("runs")
    reports.make(place)
    return place


@pytest.fixture(scope="module")
def browser():
    """Chromium; tests that ask for it belong to one group."""
    sync_api = pytest.importorskip("playwright.sync_api")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("pages are looked at in Chromium: apt-get install chromium")
    with sync_api.sync_playwright() as playwright:
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield browser
        browser.close()
