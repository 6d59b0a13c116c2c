"""Strict conversion of JSON and dataclasses: an unknown, missing or mistyped field is an error that names it."""

import difflib
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch

from latent_core.settings import FORMER_NAMES, check, short

MOST_BYTES = 1_000_000
"""Of a report at most; those that ship have 10,000."""

Record = TypeVar("Record")


def from_json(cls: type[Record], data: object, where: str, unchecked: Mapping[str, object] | None = None) -> Record:
    """The dataclass `cls` of a JSON object; `unchecked` fields come from elsewhere (tensors).

    Raises ValueError that begins with `where`.
    """
    unchecked = unchecked or {}
    if not isinstance(data, dict):
        raise ValueError(f"{where} is {type(data).__name__}, not an object of named fields.")
    expected = {field.name: field for field in fields(cls) if field.name not in unchecked}
    for name in data:
        if name not in expected:
            raise ValueError(f"{where} has an unknown field {short(name)}{nearest(name, expected)}")
    missing = [name for name, field in expected.items() if name not in data and _required(field)]
    if missing:
        raise ValueError(f"{where} lacks the field {', '.join(missing)}.")
    hints = _hints(cls)
    return cls(**{name: _convert(hints[name], value, f"{where}.{name}") for name, value in data.items()}, **unchecked)


def checked_report(path: Path, check_report: Callable[[object], None]) -> dict[str, Any]:
    """A report of measurements beside a checkpoint's weights, as its JSON object, for readers that trust it.

    check_report: raises ValueError with a clause. Raises ValueError for a report that cannot be used.
    """
    try:
        check(path.stat().st_size <= MOST_BYTES, f"it has more than {MOST_BYTES:,} bytes")
        report = json.loads(path.read_text(encoding="utf-8"))
        check_report(report)
    except (ValueError, RecursionError) as problem:
        raise ValueError(f"{path.parent.name}/{path.name} cannot be used: {problem}. Measure it again.") from problem
    return report


def to_json(record: object) -> dict[str, object]:
    """The dataclass as JSON values, without its tensors."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return {
        name: to_json(value) if is_dataclass(value) else value
        for name, value in values.items()
        if not isinstance(value, torch.Tensor)
    }


def nearest(name: str, known_names: Mapping[str, object] | list[str]) -> str:
    """The end of a sentence about an unknown name: the nearest known one, and all of them."""
    close = difflib.get_close_matches(name, list(known_names), n=1, cutoff=0.5)
    guess = f"; did you mean {close[0]!r}?" if close else "."
    return f"{guess} Known: {', '.join(known_names)}."


@cache  # they are worked out anew otherwise, for each of thousands of steps
def _hints(cls: type) -> dict[str, object]:
    return get_type_hints(cls)


def _required(field: Field) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


def _convert(hint: object, value: object, where: str) -> object:
    """`value` as `hint` says, or ValueError. Lists become tuples, objects dataclasses."""
    origin, arguments = get_origin(hint), get_args(hint)
    if hint is object:
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (inner,) = [argument for argument in arguments if argument is not type(None)]
        return _convert(inner, value, where)
    if origin is Literal:
        if value in arguments:
            return value
        if isinstance(value, str) and FORMER_NAMES.get(value) in arguments:
            return FORMER_NAMES[value]
        choices = [str(argument) for argument in arguments]
        raise ValueError(f"{where} is {short(value)}{nearest(str(value)[:80], choices)}")
    if origin is tuple and isinstance(value, list):
        inners = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        if len(inners) == len(value):
            pairs = zip(inners, value, strict=True)
            return tuple(_convert(inner, item, f"{where}[{n}]") for n, (inner, item) in enumerate(pairs))
    if origin is dict and isinstance(value, dict):
        if arguments == (str, object):
            return value
        return {str(name): _convert(arguments[1], item, f"{where}.{name}") for name, item in value.items()}
    if is_dataclass(hint):
        return from_json(hint, value, where)
    if hint is float and type(value) is int and abs(value) < 2**63:
        return float(value)
    if isinstance(hint, type) and type(value) is hint:
        return value
    expected = hint.__name__ if isinstance(hint, type) else str(hint)
    raise ValueError(f"{where} is {str(value)[:80]!r}, but {expected} is expected.")
