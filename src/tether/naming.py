"""Names that users type: what is near to one that does not exist."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, names: Iterable[str]) -> str:
    """Half a sentence for an error: the name that is nearest, and all there are."""
    known = list(names)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0)
    meant = f"did you mean {near[0]!r}? " if near else ""
    return f"{meant}There are: {', '.join(known)}"
