"""The check of types at calls that the tests run with; a whole number will do where a real one is asked for."""

import inspect

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))


def unchecked(function):
    """A function as users have it, who may pass what its annotations rule out."""
    return inspect.unwrap(function)
