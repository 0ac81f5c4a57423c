"""Shapes and types in annotations are checked at every call while the tests run."""

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
