"""Checks and quotation of rows' text: what of it can be neither tokenised nor printed."""

import re
from collections.abc import Iterator
from dataclasses import fields

from latent_core.example import TextSpan

_LONE = re.compile(r"[\ud800-\udfff]")


def clip(text: str, most: int) -> str:
    """The text where it has at most `most` characters, else its beginning and how many they are."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def printable(text: str) -> str:
    """The text on one line, with escapes for what no terminal should be sent."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def no_character(text: str) -> str | None:
    """The first code point of a text that no tokeniser takes, as an escape; None where there is none.

    Such are halves of surrogate pairs, which JSON can write, and bytes of a file that are no UTF-8.
    """
    match = _LONE.search(text)
    return match and printable(match.group())


def texts(row: object) -> Iterator[tuple[str, str]]:
    """(field, text) of everything in a checked row that is text."""
    for item in fields(row):
        for text in _within(getattr(row, item.name)):
            yield item.name, text


def _within(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, TextSpan):
        yield value.text
    elif isinstance(value, tuple):
        for item in value:
            yield from _within(item)
