"""Whether an answer is the true one, by rules alone."""

import re
from decimal import Decimal, InvalidOperation

import math_verify

_NUMBER = re.compile(r"[-+]?\d[\d,]*(\.\d+)?%?")
_FORMULA = re.compile(r"[\d\\^_=+*/]")


def same(answer: str, truth: str) -> bool:
    """Whether two answers are equal: as words without case and outer punctuation, as numbers (1,000 = 1000.0), or as
    formulae, which math-verify compares.
    """
    first, second = (text.strip().strip(".").casefold() for text in (answer, truth))
    if first == second:
        return True
    numbers = _number(first), _number(second)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if not (_FORMULA.search(first) and _FORMULA.search(second)):
        return False
    wanted, given = (math_verify.parse(f"${text}$") for text in (truth, answer))
    return math_verify.verify(wanted, given)


def _number(text: str) -> Decimal | None:
    if not _NUMBER.fullmatch(text):
        return None
    try:
        return Decimal(text.rstrip("%").replace(",", "")) / (100 if text.endswith("%") else 1)
    except InvalidOperation:
        return None
