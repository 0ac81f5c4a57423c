"""The check of types at calls that the tests run with; a whole number will do where a real one is asked for."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
