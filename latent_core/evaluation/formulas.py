"""Comparison of formulas by their values: two are equal where they agree at a few fixed places.

Reads decimal numbers, letters as variables, π, + − · × / ÷ ^, roots, fractions and brackets; nothing is simplified, no
code of others runs, and no clock decides. Values are exact fractions as long as they can be, else 50 digits.
"""

import math
import re
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, localcontext
from fractions import Fraction
from functools import lru_cache
from random import Random

Value = Fraction | Decimal | None
"""None where a formula has no value: 1/0, the root of a negative number, a power too large to write down."""
Values = tuple[Value, ...]

PLACES = 4
"""At the first two all variables are positive, at the others some are negative."""
LONGEST, DEEPEST = 200, 12
"""Characters and nested brackets of what is read; the rest is words."""

_TOKEN = re.compile(
    r"\s*(?:(\d+(?:\.\d+)?|\.\d+)|(\\frac|\\sqrt|√|\*\*|[-+*/^()\[\]{}×÷·])|(π|[^\W\d_](?![^\W\d_π])))"
)
_CONTEXT = Context(prec=50, Emax=2000, Emin=-2000, traps=[InvalidOperation, DivisionByZero, Overflow])
_PI = Decimal("3.14159265358979323846264338327950288419716939937511")
_BITS = 4096
"""Bits of an exact numerator or denominator at most."""
_CLOSE = Decimal("1e-35")


class _Unread(Exception):
    """The text is no formula, or one whose sums are left to the reader."""


class _NoValue(Exception):
    """There is no value here."""


@lru_cache(maxsize=4096)
def values(text: str) -> Values | None:
    """The values of a formula at PLACES places; None where any of the text is something else.

    What leaves plain arithmetic undone is none either: 3×4 is a size, 1-3 a range, 3-1 a score, 1/2/2024 a date. So
    are numbers with needless zeros (007), and letters side by side, which are words. `2 \\frac{1}{2}` is 2.5.
    """
    if len(text) > LONGEST or sum(map(text.count, "([{")) > DEEPEST * 4:
        return None
    try:
        tree = _Reader(text).tree()
    except _Unread:
        return None
    with localcontext(_CONTEXT):
        return tuple(_value(tree, place) for place in range(PLACES))


def close(first: Values, second: Values) -> bool:
    """Whether two formulas agree wherever they have values, and have them at the same places and somewhere."""
    pairs = list(zip(first, second, strict=True))
    if any((a is None) != (b is None) for a, b in pairs):
        return False
    with_value = [pair for pair in pairs if pair[0] is not None]
    with localcontext(_CONTEXT):
        return bool(with_value) and all(_near(*pair) for pair in with_value)


def proportional(first: Values, second: Values) -> bool:
    """Whether one is the other times a constant, and neither is a constant itself: 2x − 6 and x − 3."""
    if None in first or None in second or not all(first) or not all(second):
        return False
    with localcontext(_CONTEXT):
        if any(_near(each[0], other) for each in (first, second) for other in each[1:]):
            return False
        ratios = [_exactly("/", a, b) for a, b in zip(first, second, strict=True)]
        return all(_near(ratios[0], other) for other in ratios[1:])


def minus(first: Values, second: Values) -> Values:
    """The difference, place by place."""
    with localcontext(_CONTEXT):
        return tuple(
            None if a is None or b is None else _exactly("-", a, b) for a, b in zip(first, second, strict=True)
        )


class _Reader:
    """A parser by recursive descent; a tree is (operator, *trees), ("number", Fraction) or ("letter", name)."""

    def __init__(self, text: str) -> None:
        self.tokens: list[str] = []
        place, text = 0, text.strip()
        while place < len(text):
            match = _TOKEN.match(text, place)
            if not match or re.match(r"0\d", match.group().strip()):
                raise _Unread
            self.tokens.append(match.group().strip())
            place = match.end()
        self.place = self.depth = 0

    def tree(self) -> tuple:
        tree = self.sum()
        if self.next:
            raise _Unread
        return tree

    @property
    def next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def take(self, *allowed: str) -> str:
        """The next token if it is one of those allowed, else nothing."""
        if self.next not in allowed or not self.next:
            return ""
        self.place += 1
        return self.tokens[self.place - 1]

    def need(self, token: str) -> None:
        if not self.take(token):
            raise _Unread

    def sum(self) -> tuple:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Unread
        left = self.product()
        while sign := self.take("+", "-"):
            left = _undone(sign, left, self.product())
        self.depth -= 1
        return left

    def product(self) -> tuple:
        left = self.signed()
        while True:
            before = self.tokens[self.place - 1]
            if sign := self.take("*", "×", "·", "/", "÷"):
                left = _undone(sign, left, self.signed())
            elif self.next.isalpha() and (not before.isalpha() or "π" in (before, self.next)):
                left = _undone("*", left, self.power())
            elif self.next == "\\frac" and _plain(left, signed=True):
                left = _mixed(left, self.power())
            elif self.next in ("(", "\\frac", "\\sqrt", "√"):
                left = _undone("*", left, self.power())
            else:
                return left

    def signed(self) -> tuple:
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        tree = self.power()
        return ("minus", tree) if negative else tree

    def power(self) -> tuple:
        base = self.atom()
        if not self.take("^", "**"):
            return base
        self.depth += 1
        if self.depth > DEEPEST:
            raise _Unread
        tree = ("^", base, self.signed())
        self.depth -= 1
        return tree

    def atom(self) -> tuple:
        token = self.next
        if not token:
            raise _Unread
        self.place += 1
        if token[0].isdigit() or token[0] == ".":
            return "number", Fraction(token)
        if token.isalpha():
            return "letter", token
        if token in "({":
            tree = self.sum()
            self.need(")" if token == "(" else "}")
            return tree if token == "{" else ("in brackets", tree)
        if token == "\\frac":
            return "\\frac", self.group(), self.group()
        if token == "\\sqrt":
            degree = ("number", Fraction(2))
            if self.take("["):
                degree = self.sum()
                self.need("]")
            return "root", self.group(), degree
        if token == "√":
            return "root", self.root(), ("number", Fraction(2))
        raise _Unread

    def root(self) -> tuple:
        if self.next in ("√", "\\sqrt"):
            raise _Unread
        return self.atom()

    def group(self) -> tuple:
        self.need("{")
        tree = self.sum()
        self.need("}")
        return tree


def _plain(tree: tuple, signed: bool = False) -> bool:
    return tree[0] == "number" or signed and tree[0] == "minus" and tree[1][0] == "number"


def _literal(tree: tuple) -> bool:
    """Whether it is a number or a ratio of two, as written down."""
    inside = tree[1] if tree[0] in ("minus", "in brackets") else tree
    return _plain(inside, signed=True) or inside[0] == "/" and _plain(inside[1], True) and _plain(inside[2], True)


def _undone(sign: str, left: tuple, right: tuple) -> tuple:
    if _literal(left) and _literal(right) and not (sign == "/" and _plain(left, signed=True) and _plain(right)):
        raise _Unread
    return {"×": "*", "·": "*", "÷": "/"}.get(sign, sign), left, right


def _mixed(whole: tuple, part: tuple) -> tuple:
    """2 \\frac{1}{2} is a mixed number, 2 \\frac{x}{2} a product."""
    if part[0] != "\\frac" or not (_plain(part[1]) and _plain(part[2])):
        return "*", whole, part
    return ("minus", ("+", whole[1], part)) if whole[0] == "minus" else ("+", whole, part)


@lru_cache(maxsize=1024)
def _letter(name: str, place: int) -> Value:
    if name == "π":
        return _PI
    draw = Random(f"{name}/{place}")  # seeding with text goes through SHA-512: the same everywhere
    value = Fraction(draw.randint(2, 97), draw.choice((3, 7, 11, 13)))
    return -value if place >= 2 and draw.random() < 0.5 else value


def _value(tree: tuple, place: int) -> Value:
    try:
        return _computed(tree, place)
    except (_NoValue, InvalidOperation, DivisionByZero, Overflow):
        return None


def _computed(tree: tuple, place: int) -> Fraction | Decimal:
    kind = tree[0]
    if kind == "number":
        return tree[1]
    if kind == "letter":
        return _letter(tree[1], place)
    first = _computed(tree[1], place)
    if kind == "in brackets":
        return first
    if kind == "minus":
        return -first
    second = _computed(tree[2], place)
    if kind == "root":
        return _root(first, second)
    return _power(first, second) if kind == "^" else _exactly("/" if kind == "\\frac" else kind, first, second)


def _exactly(sign: str, first: Fraction | Decimal, second: Fraction | Decimal) -> Fraction | Decimal:
    """+, −, · or / on fractions where both are, else on decimals."""
    if not (isinstance(first, Fraction) and isinstance(second, Fraction)):
        first, second = _decimal(first), _decimal(second)
    if sign == "/" and not second:
        raise _NoValue
    result = {"+": lambda: first + second, "-": lambda: first - second, "*": lambda: first * second}.get(
        sign, lambda: first / second
    )()
    if isinstance(result, Fraction) and _size(result) > _BITS:
        raise _NoValue
    return result


def _power(base: Fraction | Decimal, exponent: Fraction | Decimal) -> Fraction | Decimal:
    whole = exponent if isinstance(exponent, Fraction) and exponent.denominator == 1 else None
    if not base and exponent <= 0:
        raise _NoValue
    if whole is not None and isinstance(base, Fraction):
        if abs(whole) > _BITS or _size(base) * abs(whole) > _BITS:
            raise _NoValue
        return base**whole.numerator
    if base < 0 and whole is None:
        raise _NoValue
    return _decimal(base) ** _decimal(exponent)


def _root(of: Fraction | Decimal, degree: Fraction | Decimal) -> Fraction | Decimal:
    if not isinstance(degree, Fraction) or degree.denominator > 1 or not 2 <= degree <= 64:
        raise _NoValue
    if of < 0:
        if degree % 2 == 0:
            raise _NoValue
        return -_root(-of, degree)
    if degree == 2 and isinstance(of, Fraction):
        top, bottom = math.isqrt(of.numerator), math.isqrt(of.denominator)
        if (top * top, bottom * bottom) == (of.numerator, of.denominator):
            return Fraction(top, bottom)
    return _power(of, 1 / degree) if degree > 2 else _decimal(of).sqrt()


def _size(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _decimal(number: Fraction | Decimal) -> Decimal:
    if isinstance(number, Decimal):
        return number
    return Decimal(number.numerator) / Decimal(number.denominator)


def _near(first: Fraction | Decimal, second: Fraction | Decimal) -> bool:
    if isinstance(first, Fraction) and isinstance(second, Fraction):
        return first == second
    first, second = _decimal(first), _decimal(second)
    return abs(first - second) <= _CLOSE * max(1, abs(first), abs(second))
