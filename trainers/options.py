"""Groups of a recipe's options that serve every stage, and the check that values are of their fields' types."""

from dataclasses import dataclass, field, fields, is_dataclass
from sys import float_info
from typing import Literal, get_args, get_origin

from latent_core.settings import check, short
from trainers.data.formats import FORMATS


@dataclass(frozen=True, kw_only=True, slots=True)
class DataOptions:
    """Rows of a published format instead of Glyphs."""

    format: str = "monet"
    """A name in trainers.data.formats.FORMATS: monet, rows of Monet-SFT-125K; lvr, rows with boxes; virl and thyme,
    questions and answers alone."""
    files: list[str] = field(default_factory=list)
    """JSON or Parquet files, one per subset."""
    root: str = ""
    """Folder that the rows' image paths start from."""
    instruction: str = ""
    """Appended to every question, e.g. how to write the answer down."""
    on_bad_row: Literal["error", "skip"] = "error"
    """skip: bad rows are left out and listed in the run folder's bad_rows.jsonl."""

    def __post_init__(self) -> None:
        check_types(self, "data")
        check(self.format in FORMATS, f"data.format is {short(self.format)}; choose one of {', '.join(FORMATS)}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class CapOptions:
    """Caps on a row's images in tokens of the language model (28 × 28 pixels of Qwen2.5-VL); 0: none."""

    total: int = 0
    """All images of a row, the question's and the auxiliary ones together."""
    each: int = 0
    """One image of a row above `total`."""
    teacher_total: int = 0
    """As `total`, for the teacher's rows."""
    teacher_each: int = 0
    """As `each`, for the teacher's rows."""

    def __post_init__(self) -> None:
        check_types(self, "caps")
        for who in ("", "teacher_"):
            total, each = getattr(self, f"{who}total"), getattr(self, f"{who}each")
            check(bool(total) == bool(each), f"caps.{who}total is {total}, caps.{who}each {each}; set both or none.")


def is_finite(value: int | float) -> bool:
    """Whether a number is one that floats hold, as whole numbers of hundreds of digits are not."""
    return abs(value) <= float_info.max


def check_types(record: object, name: str = "") -> None:
    """Raises ValueError for a field whose value is not of its type; `name` is the field that holds the record."""
    for item in fields(record):
        if is_dataclass(item.type):
            continue
        value = getattr(record, item.name)
        fits, expected = _fits(value, item.type)
        check(fits, f"{name + '.' if name else ''}{item.name} is {short(value)}; {expected}.")


def _fits(value: object, kind: object) -> tuple[bool, str]:
    """Whether a value is of a field's type, and what a sentence says where it is not. Numbers are at least 0."""
    allowed = get_args(kind)
    if get_origin(kind) is Literal:
        return isinstance(value, str) and value in allowed, f"choose one of {', '.join(allowed)}"
    if kind == list[str]:
        return isinstance(value, list) and all(isinstance(v, str) for v in value), "it must list paths"
    if get_origin(kind) is dict:
        named = isinstance(value, dict) and all(isinstance(key, str) for key in value)
        if allowed[1] is not float:
            return named, "it must hold fields, as {name: value}"
        numbers = named and all(type(v) in (int, float) and is_finite(v) for v in value.values())
        return numbers, "it gives names their numbers, as {name: 1}"
    if type(None) in allowed:
        fits, expected = _fits(value, allowed[0])
        return value is None or fits, f"{expected}, or null"
    if kind is str:
        return isinstance(value, str), "it must be text"
    if kind is bool:
        return isinstance(value, bool), "it must be true or false"
    if kind is int:
        whole = type(value) is int and 0 <= value < 2**31
        return whole, f"it must be a whole number of at least 0{' and below 2^31' if type(value) is int else ''}"
    number = type(value) in (int, float) and 0 <= value and is_finite(value)
    return number, "it must be a number of at least 0"
