"""Shapes and types in annotations are checked at every call while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("tether", "typechecker.check")

import torch  # noqa: E402

# Several test processes share the cores.
torch.set_num_threads(1)
