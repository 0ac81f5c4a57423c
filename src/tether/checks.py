"""What users give: names that do not exist, numbers and choices that cannot be, and what to say of them."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Iterable
from typing import Any, get_args


def nearest(name: str, names: Iterable[str]) -> str:
    """Half a sentence for an error: the name that is nearest, if one is near, and all there are."""
    known = {each.casefold(): each for each in names}
    near = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.5)
    meant = f"did you mean {known[near[0]]!r}? " if near else ""
    return f"{meant}There are: {', '.join(known.values())}" if known else "there are none here"


def check_choice(name: str, value: str, choices: Any) -> None:
    """Raise `ValueError` unless the value is one of a `Literal`'s."""
    if value not in get_args(choices):
        raise ValueError(f"{name}={value!r}: choose one of {', '.join(get_args(choices))}")


def whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """The value as a whole number, if it is one and not too small or large.

    Raises:
        ValueError: if it is not; the message has the range.
    """
    span = f"at least {least}" if most is None else f"from {least} to {most}"
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if isinstance(value, bool) or number < least or (most is not None and number > most):
        raise ValueError(f"{name}={value!r}: give a whole number, {span}")
    return number
