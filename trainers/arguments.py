"""The fields of a recipe that are transformers.TrainingArguments: checked by type before transformers reads them."""

from dataclasses import fields
from enum import Enum
from math import isfinite
from typing import Any, Literal, get_args, get_origin, get_type_hints

from transformers import HfArgumentParser, TrainingArguments

from latent_core.settings import check, short

NAMES = frozenset(item.name for item in fields(TrainingArguments))
COUNTS = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("logging_steps", "save_steps", "eval_steps"),
)
"""Of which there is at least 1."""
SIGNED = ("max_steps", "local_rank")
"""Numbers of which -1 stands for none."""
STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")
WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "fields"}


def read_arguments(values: dict[str, object]) -> dict[str, object]:
    """The values as their fields' types say. Raises ValueError that names the field."""
    hints, defaults = (
        get_type_hints(TrainingArguments),
        {item.name: item.default for item in fields(TrainingArguments)},
    )
    found = {}
    for name, value in values.items():
        if name in STRATEGIES and value is False:  # YAML 1.1 reads no as false
            value = "no"
        kinds, choices = _kinds(hints[name])
        if type(defaults[name]) in (int, float):
            kinds = {type(defaults[name])}
        found[name] = _read(name, value, kinds, choices)
        if type(defaults[name]) is float:
            found[name] = float(found[name])
    for name in COUNTS:
        given = found.get(name)
        check(given is None or given >= 1, f"{name} is {given}; at least 1 is needed.")
    for name, given in found.items():
        below = type(given) in (int, float) and given < 0 and name not in SIGNED
        check(not below, f"{name} is {given}; it must be at least 0.")
    return found


def build_arguments(values: dict[str, object]) -> TrainingArguments:
    """TrainingArguments of values that `read_arguments` gave. Raises ValueError for what transformers refuses."""
    try:
        (arguments,) = HfArgumentParser((TrainingArguments,)).parse_dict(values)
    except (TypeError, ValueError, OSError, ImportError) as error:
        raise ValueError(f"The training arguments cannot be used: {' '.join(str(error).split())}") from error
    return arguments


def _kinds(hint: object) -> tuple[set[type], list[str]]:
    """The plain types that a hint allows, and the words where it names them."""
    origin = get_origin(hint)
    if hint is Any:
        return set(WORDS), []
    if origin is Literal:
        return {type(value) for value in get_args(hint)}, []
    if origin in (list, dict):
        return {origin}, []
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {str}, [str(item.value) for item in hint]
    if isinstance(hint, type):
        return {hint}, []
    kinds, choices = set(), []
    for part in get_args(hint):
        more, words = _kinds(part)
        kinds, choices = kinds | more, choices + words
    return kinds, choices


def _read(name: str, value: object, kinds: set[type], choices: list[str]) -> object:
    number = {int, float} & kinds
    if number and isinstance(value, str) and str not in kinds:
        try:
            value = float(value)  # also where it is written as text
        except ValueError:
            check(False, f"{name} is {short(value)}; it must be {WORDS[number.pop()]}.")
    if number and type(value) in (int, float):
        whole = float not in kinds
        fits = isfinite(value) and (not whole or value == int(value))
        check(fits, f"{name} is {short(value)}; it must be {'a whole number' if whole else 'a number'}.")
        return int(value) if whole else value
    wanted = " or ".join(WORDS.get(kind, kind.__name__) for kind in sorted(kinds - {type(None)}, key=str))
    check(type(value) in kinds, f"{name} is {short(value)}; it must be {wanted}.")
    check(not choices or value in choices, f"{name} is {short(value)}; choose one of {', '.join(choices)}.")
    return value
