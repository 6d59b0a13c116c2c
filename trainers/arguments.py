"""The fields of a recipe that are transformers.TrainingArguments: checked by type before transformers reads them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from enum import Enum
from typing import Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch.nn import Parameter
from torch.utils.data import DataLoader
from transformers import HfArgumentParser, SchedulerType, Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from transformers.training_args import trainer_log_levels

from latent_core.settings import check, short
from trainers.options import is_finite

NAMES = frozenset(item.name for item in fields(TrainingArguments))
COUNTS = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    *("logging_steps", "save_steps", "eval_steps", "dataloader_prefetch_factor"),
)
"""Of which there is at least 1."""
SIGNED = ("max_steps", "local_rank")
"""Numbers of which -1 stands for none."""
MOST = 2**32 - 1
"""Of whole numbers, seeds among them."""
MOST_WORKERS = 1024
LEVELS = ("log_level", "log_level_replica")
MAPPINGS = ("lr_scheduler_kwargs", "activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
"""Which transformers also takes as JSON in text."""
STRATEGIES = ("eval_strategy", "save_strategy", "logging_strategy")
WORDS = {str: "text", bool: "true or false", int: "a whole number", float: "a number", list: "a list", dict: "fields"}


def read_arguments(values: dict[str, object]) -> dict[str, object]:
    """The values as their fields' types say. Raises ValueError that names the field."""
    hints, defaults = (
        get_type_hints(TrainingArguments),
        {item.name: item.default for item in fields(TrainingArguments)},
    )
    read = {}
    for name, value in values.items():
        if name in STRATEGIES and value is False:  # YAML 1.1 reads no as false
            value = "no"
        kinds, choices = _kinds(hints[name])
        if name in LEVELS:
            choices = [*trainer_log_levels]
        if name in MAPPINGS:
            kinds -= {str}
        if type(defaults[name]) in (int, float):
            kinds = {type(defaults[name])}
        read[name] = _read(name, value, kinds, choices)
        if type(defaults[name]) is float:
            read[name] = float(read[name])
    for name in COUNTS:
        count = read.get(name)
        check(count is None or count >= 1, f"{name} is {count}; at least 1 is needed.")
    for name, value in read.items():
        below = type(value) in (int, float) and value < 0 and name not in SIGNED
        check(not below, f"{name} is {value}; it must be at least 0.")
        most = MOST_WORKERS if name == "dataloader_num_workers" else MOST
        check(type(value) is not int or value <= most, f"{name} is {short(value)}; it must be at most {most}.")
    return read


def build_arguments(values: dict[str, object]) -> TrainingArguments:
    """TrainingArguments of values that `read_arguments` gave. Raises ValueError for what transformers refuses."""
    try:
        (arguments,) = HfArgumentParser((TrainingArguments,)).parse_dict(values)
    except (TypeError, ValueError, OSError, ImportError, OverflowError) as error:
        raise ValueError(f"The training arguments cannot be used: {' '.join(str(error).split())}") from error
    return arguments


def check_buildable(arguments: TrainingArguments) -> None:
    """Builds optimiser, schedule and loader around nothing. Raises ValueError for settings of which none can be built,
    which transformers would meet once the model is there.
    """
    missing = sorted({*arguments.report_to} - {*get_available_reporting_integrations()})
    check(not missing, f"report_to names {short(missing)[1:-1]}, which is not installed or not known; leave it out.")
    optim, schedule, kwargs = arguments.optim.value, arguments.lr_scheduler_type, arguments.lr_scheduler_kwargs
    with _refused(f"optim={optim} with adam_beta1, adam_beta2, adam_epsilon and optim_args as they are"):
        optimizer_class, optimizer_kwargs = Trainer.get_optimizer_cls_and_kwargs(arguments)
        optimizer = optimizer_class([Parameter(torch.zeros(1))], **optimizer_kwargs)
    with _refused(f"lr_scheduler_type={SchedulerType(schedule).value} with lr_scheduler_kwargs={short(kwargs)}"):
        warmup, steps = arguments.get_warmup_steps(arguments.max_steps), arguments.max_steps
        built = get_scheduler(schedule, optimizer, warmup, steps, scheduler_specific_kwargs=kwargs)
        for rate in getattr(built, "lr_lambdas", ()):
            rate(steps - 1)
    with _refused("dataloader_num_workers and the other fields of the loader"):
        DataLoader(
            [0],
            num_workers=arguments.dataloader_num_workers,
            multiprocessing_context=arguments.dataloader_multiprocessing_context,
            prefetch_factor=arguments.dataloader_prefetch_factor,
            persistent_workers=arguments.dataloader_persistent_workers,
        )


@contextmanager
def _refused(what: str) -> Iterator[None]:
    """Turns what torch and transformers say of settings into a sentence that names them."""
    try:
        yield
    except (ArithmeticError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{what} cannot be used: {' '.join(str(error).split())[:300]}") from error


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
        fits = is_finite(value) and (not whole or value == int(value))
        check(fits, f"{name} is {short(value)}; it must be {'a whole number' if whole else 'a number'}.")
        return int(value) if whole else value
    expected = " or ".join(WORDS.get(kind, kind.__name__) for kind in sorted(kinds - {type(None)}, key=str))
    check(type(value) in kinds, f"{name} is {short(value)}; it must be {expected}.")
    check(not choices or value in choices, f"{name} is {short(value)}; choose one of {', '.join(choices)}.")
    return value
