"""A run described by a typed config: what a TOML file may say, and errors that name what it says wrong.

    workers = 8
    steps = 500
    period = 10                          # of every method that does not say its own

    [data]
    name = "digits"
    partition = { name = "classes", classes = 2 }

    [model]
    name = "mlp"
    hidden = [50]

    [optimizer]
    name = "SGD"
    lr = 0.1

    [methods.ring]                       # `--methods ring` of the command
    name = "decentralized"
    topology = "ring"

Wherever a table has a `name`, that name alone may stand for the table. The other keys are the parameters of what is
named: of the dataclass or function in this library, or of the class in `torch.optim`.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, create_model

from tether.checks import nearest


class ConfigError(ValueError):
    """What is wrong in a config, and where."""


def _named(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


Choice = Annotated[dict[str, Any], BeforeValidator(_named)]
"""A name with parameters."""


class Config(BaseModel):
    """A run: everything but the method's round is the same for all methods that are compared."""

    model_config = ConfigDict(extra="forbid", strict=True)

    workers: int = Field(ge=1, description="number of workers m")
    steps: int = Field(ge=0, description="local steps of every worker")
    batch_size: int | Literal["full"] = Field(32, description="samples a local step; 'full': all that a worker holds")
    seed: int = Field(0, ge=0)
    period: int | dict[str, Any] = Field(
        10,
        description="local steps between rounds, or a schedule of them, for methods that do not say their own",
    )
    overlap: int = Field(0, description="local steps that a round's message may take")
    order: Literal["step-then-mix", "mix-then-step"] = "step-then-mix"
    accumulate: int = Field(1, description="batches whose gradients are averaged in a local step")
    buffers: Literal["average", "local"] = "average"
    optimizer_state: Literal["local", "average", "reset"] = "local"
    on_nonfinite: Literal["stop", "exclude"] = "stop"
    evaluate_every: int | None = Field(None, ge=1, description="local steps between evaluations; default: at the end")
    checkpoint_every: int = Field(1000, ge=1, description="local steps between checkpoints, of a run with a folder")
    allreduce: Literal["ring", "star"] = "ring"
    trigger: Choice | None = Field(None, description="what starts rounds: 'total-steps', or 'time-window' with seconds")
    clock: dict[str, Any] | None = Field(None, description="how long steps and messages take: `tether.Clock`'s")
    stepping: Literal["auto", "stacked", "compiled", "rows"] = "auto"
    processes: int = Field(1, ge=1, description="processes of this machine that share the simulated workers")
    device: str = Field("auto", description="'cpu', 'cuda', ...; 'auto' takes a GPU where there is one")
    dtype: Literal["float32", "float64"] = "float32"
    data: Choice = Field(description="name (or several, the first that is installed), its parameters, partition")
    model: Choice = Field(description="name and its parameters")
    objective: Literal["cross-entropy", "squared-error"] | None = Field(
        None, description="what is minimised; default: 'cross-entropy' for classes, 'squared-error' for real targets"
    )
    optimizer: Choice = Field(description="a class in torch.optim and its parameters")
    scheduler: Choice | None = Field(None, description="a class in torch.optim.lr_scheduler and its parameters")
    method: str = Field("local", description="the method that `tether train` runs")
    methods: dict[str, Choice] = Field(
        default_factory=dict, description="methods with parameters, by names of your own"
    )


def load(path: Path, overrides: Mapping[str, str] | None = None) -> Config:
    """A config from a TOML file.

    Args:
        path: the file.
        overrides: values by dotted key, such as `{"data.partition": "iid"}`, that go before those of the file; read as
            TOML values where they are, else as text.

    Raises:
        ConfigError: if it is missing, not TOML, or says something that does not exist; names key, place and nearest.
    """
    try:
        content = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValueError as error:  # not TOML, or not even text
        raise ConfigError(f"{path} is not TOML: {error}") from error
    for key, text in (overrides or {}).items():
        *tables, last = key.split(".")
        table = content
        for name in tables:
            table[name] = _named(table.get(name, {}))
            table = table[name]
            if not isinstance(table, dict):
                raise ConfigError(f"--set {key}={text}: {name!r} is not a table")
        table[last] = _value(text)
    return validate(Config, content, str(path))


def validate(model: type[BaseModel], content: Mapping[str, Any], place: str) -> Any:
    """An instance of a pydantic model from a table, with errors in our words."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(e, model, place) for e in error.errors(include_url=False))) from None


def choose(table: Any, known: Mapping[str, Callable[..., Any]], place: str, **given: Any) -> Any:
    """Make what a table names.

    Args:
        table: `name` and parameters.
        known: what there is, by name.
        place: where the table stands, for errors.
        given: parameters that the table may not set, passed on.

    Raises:
        ConfigError: for an unknown name, key or kind of value, or whatever the thing named refuses.
    """
    return maker(table, known, place, *given)(**given)


def maker(table: Any, known: Mapping[str, Callable[..., Any]], place: str, *given: str) -> Callable[..., Any]:
    """Look up a table's `name` and check its other keys. What is returned makes the thing, from what is given."""
    table = _named(table)
    if not isinstance(table, dict):
        raise ConfigError(f"{place} = {table!r}: give a name, or a table with one. There are: {', '.join(known)}")
    parameters = dict(table)
    name = parameters.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{place}.name: which one? There are: {', '.join(known)}")
    if name not in known:
        raise ConfigError(f"{place}.name: there is no {name!r}; {nearest(name, known)}")
    checked = validate(_parameters(known[name], given), parameters, place)
    set_here = {key: getattr(checked, key) for key in parameters}

    def make(**values: Any) -> Any:
        try:
            return known[name](**values, **set_here)
        except (ValueError, TypeError, RuntimeError, AssertionError, ArithmeticError) as error:
            raise ConfigError(f"{place}: {error}") from error

    return make


def _parameters(target: Callable[..., Any], given: tuple[str, ...]) -> type[BaseModel]:
    """A pydantic model of a callable's keyword parameters."""
    # A dataclass's own annotations are looked up where each of its bases is written, those of its __init__ are not.
    annotated = target.__init__ if inspect.isclass(target) and not dataclasses.is_dataclass(target) else target
    try:
        hints = typing.get_type_hints(annotated)
    except NameError:
        hints = {}  # annotations that only a type checker can read: let the target judge
    fields: dict[str, Any] = {}
    for name, parameter in list(inspect.signature(target).parameters.items()):
        if name in given or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        default = ... if parameter.default is parameter.empty else parameter.default
        kind = hints.get(name, Any)
        fields[name] = (Annotated[kind, BeforeValidator(_as_tuple)] if "tuple" in str(kind) else kind, default)
    config = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True, protected_namespaces=())
    return create_model(getattr(target, "__name__", "parameters"), __config__=config, **fields)


def _as_tuple(value: Any) -> Any:
    """TOML has no tuples, for which `torch.optim` asks."""
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _explain(error: Any, model: type[BaseModel], place: str) -> str:
    """A pydantic error in our words: what follows the field in its location are branches of a union."""
    key, *inner = [str(part) for part in error["loc"]] or [""]
    if key == "methods" and inner:
        place, key = f"{place}: methods", inner[0]
    if error["type"] == "extra_forbidden":
        return f"{place}: there is no key {key!r}; {nearest(key, model.model_fields)}"
    if error["type"] == "missing":
        return f"{place}: the key {key!r} is missing"
    value, message = error["input"], error["msg"][0].lower() + error["msg"][1:]
    near = ""
    if error["type"] == "literal_error":
        choices = re.findall("'([^']*)'", error["ctx"]["expected"])
        near = f"; {nearest(str(value), choices)}"
    return f"{place}: {key} = {value!r}: {message}{near}"


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
