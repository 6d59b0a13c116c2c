"""Grading of answers, whether two are the same: one rule for studies, rewards and whatever else compares answers.

All of an answer counts; how it is written does not. In the order in which they apply:

1. **Writing.** What is around the whole goes: `\\boxed{}`, `<answer>`, `\\text{}`, `\\textbf{}`, `\\mathrm{}`, `$…$`,
   quotes, code marks, emphasis, punctuation at the ends (spelling.py has the list). Full-width letters are letters;
   LaTeX's names of signs, kinds of dashes, quotes and spaces are one. Capitals do not count: `Yes!` is `yes`.
2. **Choices.** `(B)`, `B)`, `[B]`, `B.`, `B:`, `Option B` and `The answer is B` are `B`. `(B) ring`, `B. ring` and
   `B: ring` are letter and words: they equal `B` and they equal `ring`, but neither `(C) ring` nor `(B) bar`.
3. **Numbers** are compared exactly: `.5` is `0.5`, `1e3` is `1000`, `3 × 10^5` is `300000`, `50%` is `0.5`, `1/2` and
   `\\frac{1}{2}` are `0.5`, `1 1/2` is `1.5`; `0.33` is not `1/3`. Commas group three digits (`1,000`); `1,2` is a
   list of two. Needless zeros make a name, not a number: `007` is not `7`.
4. **Units** belong to the answer: `5 kg` is neither `5 g` nor `5 m`. Singular, plural and symbol of the usual ones are
   one (`3 hours`, `3 h`), money may stand before its number, nothing is converted (`1 h` is not `60 min`). Capitals do
   not count, except in mega and milli (`5 MW`, `5 mW`). A number alone equals one with a usual unit, which the
   question then has named: `5` is `5 kg`; but `5` is not `5 apples`, `5%` or `5 million`.
5. **Lists** are compared item by item, in order: `1, 2` is `1,2`, but not `2, 1`. Brackets count, for (1, 2), [1, 2)
   and {1, 2} are different things; around one item they do not. Order does not count in {…} and among equations.
6. **Equations** need both sides: `width = 3` is not `height = 3`; sides may change places and formulas their factor
   (`2x = 6` is `x = 3`), and `x > 3` is `3 < x`. A letter's value equals the value alone: `x = 3` is `3`; a word's
   does not.
7. **Formulas** are compared by value (formulas.py): `x^2 + 1` is `1 + x^2`, `\\sqrt{8}` is `2\\sqrt{2}`. Plain
   arithmetic left undone is no formula: `3×4` is not `12`, `1-3` not `-2`.
8. **The rest is words**, and every one counts: dates, times, addresses, versions, phone numbers, ranges and ratios are
   as they are written. `2024-01-02` is neither `2021` nor `2 January 2024`; `v1.10` is not `v1.1`.

Symmetric and reflexive; not transitive, for `5 kg` and `5 g` both equal `5`. Depends on the two texts alone, on no
clock, thread or process, and takes time in proportion to their length.
"""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from latent_core.evaluation import formulas
from latent_core.evaluation.formulas import Values, close
from latent_core.evaluation.units import unit
from latent_core.spelling import plain

VERSION = 1
"""Version of the rules above: what was counted by another version is counted again."""
LONGEST, MOST, DEEPEST = 1000, 64, 6
"""Characters of an answer that is taken apart, items of a list, brackets in brackets; beyond, it is words."""


def equal(answer: str | None, truth: str | None) -> bool:
    """Whether two answers are the same by the rules above; no answer (None) equals only none."""
    if answer == truth:
        return True
    if answer is None or truth is None:
        return False
    if answer.isascii() and truth.isascii() and answer.isalpha() and truth.isalpha():
        return answer.casefold() == truth.casefold()
    first, second = plain(answer), plain(truth)
    if first == second:
        return True
    if max(len(first), len(second)) > LONGEST:
        return _key(first) == _key(second)
    one, other = _form(first), _form(second)
    return _same(one, other) or _says_more(one, other) or _says_more(other, one)


@dataclass(frozen=True, slots=True)
class Wording:
    """An answer, or a part of one, that is not taken apart."""

    key: str


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number or formula, and its unit if it has one."""

    values: Values
    key: str
    """Compared where there are no values, as in 1/0."""
    unit: str = ""
    usual: bool = True


@dataclass(frozen=True, slots=True)
class Many:
    """A list: items and the brackets around them, if any."""

    brackets: str
    items: tuple["Form", ...]

    @property
    def ordered(self) -> bool:
        return self.brackets != "{}" and not all(isinstance(item, Equation) for item in self.items)


@dataclass(frozen=True, slots=True)
class Equation:
    """An equation or an inequality."""

    left: "Form"
    sign: str
    """=, < or ≤: what is greater stands on the right."""
    right: "Form"
    letter: bool
    """Whether it gives the value of an unknown."""


@dataclass(frozen=True, slots=True)
class Choice:
    """The letter of an option and its words."""

    letter: Wording
    words: "Form"


Form = Wording | Quantity | Many | Equation | Choice

_LETTER = re.compile(r"[(\[]?([A-Za-z])[)\]]?")
_OPTION = re.compile(
    r"(?:(?:the )?(?:final |correct |right )?(?:answer|option|choice)(?: is\b\s*:?|\s*:)|答案\s*[:是])\s*"
    r"|(?:option|choice|answer|选项|答案|选)\s*(?=[(\[]?[a-z](?:[)\].:]|$))",
    re.IGNORECASE,
)
_CHOICE = re.compile(
    r"(?:(?:\(([a-z])\)|\[([a-z])\]|([a-z])\))(?:\s+|(?=[^\W_]))|([a-z])(?:[.:]\s+|[.:](?=[^\W\d_]{2})))"
    r"(?=[^\W_]|[\"'$\\]|-\d)(.+)",
    re.DOTALL | re.IGNORECASE,
)
_UNKNOWN = re.compile(r"[^\W\d_](?:_?\{?\d\}?)?")
_GROUPS = r"[1-9]\d{0,2}(?:,\d{3})+(?!\d)"
_NUMBER = rf"(?:{_GROUPS}|0|[1-9]\d*(?![\d,]*,\d{{3}})|(?=\.\d))(?:\.\d+)?(?:e[+-]?\d{{1,3}}(?![\d.]))?"
_EXACT = re.compile(rf"([+-]?)\s*({_NUMBER})(?:\s*(%|percent\b|per cent\b))?", re.IGNORECASE)
_MIXED = re.compile(r"([+-]?)\s*([1-9]\d*) ([1-9]\d*)/([1-9]\d*)(?![\d/])")
_GROUPED = re.compile(rf"(?<![\d,.]){_GROUPS}(?!,\d)")
_MONEY = re.compile(r"([+-]?)\s*([$€£¥₹₩₽])\s*(?=[\d.])(.+)")
_TIMES = re.compile(r"(?<=\d)\s*x\s*(?=10\s*\^)")
_SIGN = re.compile(r"(?<![-=<>!≤≥≠:])([=<>≤≥])(?![=<>≤≥])")
_TIGHT = re.compile(r"\s*([-=<>≤≥≠+*×÷·/^|→,;:()\[\]{}])\s*")


@lru_cache(maxsize=4096)
def _form(text: str, depth: int = 0) -> Form:
    """The form of an answer in its plain spelling."""
    if depth == 0 and (option := _OPTION.match(text)):
        text = plain(text[option.end() :])
    if letter := _LETTER.fullmatch(text):
        return Wording(letter.group(1).casefold())
    if depth == 0 and (choice := _CHOICE.fullmatch(text)):
        letter = next(filter(None, choice.groups()[:4]))
        return Choice(Wording(letter.casefold()), _form(plain(choice.group(5)), 1))
    if depth < DEEPEST and (form := _many(text, depth) or _equation(text, depth)):
        return form
    return _quantity(text) or Wording(_key(text))


def _many(text: str, depth: int) -> Form | None:
    brackets = ""
    inside = text
    if text[:1] in ("(", "[", "{") and text[-1:] in (")", "]", "}") and _closes(text):
        brackets, inside = text[0] + text[-1], text[1:-1].strip()
    cuts = _cuts(inside, ";") or _cuts(inside, ",", grouped=not brackets or ", " in inside)
    if not cuts:
        whole = brackets in ("()", "[]", "{}") and inside
        return _form(plain(inside), depth + 1) if whole else None
    items = [inside[start + 1 : end].strip() for start, end in zip((-1, *cuts), (*cuts, len(inside)), strict=True)]
    if len(items) > MOST or not all(items):
        return None
    return Many(brackets, tuple(_form(plain(item), depth + 1) for item in items))


def _closes(text: str) -> bool:
    """Whether the bracket that opens a text is closed by its last character."""
    level = 0
    for place, letter in enumerate(text):
        level += (letter in "([{") - (letter in ")]}")
        if level == 0:
            return place == len(text) - 1
    return False


def _cuts(text: str, mark: str, *, grouped: bool = False) -> list[int]:
    """The places of a mark outside of all brackets, and, if numbers are grouped, outside of them."""
    numbers = [number.span() for number in _GROUPED.finditer(text)] if grouped else []
    cuts, level = [], 0
    for place, letter in enumerate(text):
        level += (letter in "([{") - (letter in ")]}")
        if letter == mark and level == 0 and not any(start <= place < end for start, end in numbers):
            cuts.append(place)
    return cuts


def _equation(text: str, depth: int) -> Equation | None:
    parts = [part.strip() for part in _SIGN.split(text)]
    if len(parts) != 3 or not all(parts) or any(sign in parts[0] + parts[2] for sign in "=<>≤≥"):
        return None
    left, right = (_form(plain(side), depth + 1) for side in parts[::2])
    match parts[1]:
        case "=":
            return Equation(left, "=", right, bool(_UNKNOWN.fullmatch(parts[0])))
        case "<" | "≤":
            return Equation(left, parts[1], right, False)
    return Equation(right, {">": "<", "≥": "≤"}[parts[1]], left, False)


def _quantity(text: str) -> Quantity | None:
    """A number, a formula, or one of them and a unit."""
    sign, symbol, rest = money.groups() if (money := _MONEY.fullmatch(text)) else ("", "", text)
    number, length = _number(sign + rest)
    after = (sign + rest)[length:].strip()
    if number is not None:
        if symbol and not after:
            return Quantity(number, _key(text), symbol)
        if not symbol and not after:
            return Quantity(number, _key(text))
        name, is_unit, usual = unit(after, apart=(sign + rest)[length : length + 1].isspace())
        if not symbol and is_unit:
            return Quantity(number, _key(text), name, usual)
    if not symbol:
        lower = _TIMES.sub("×", text.casefold())
        if (values := formulas.values(lower)) is not None:
            return Quantity(values, _key(text))
        if suffix := re.search(r"(?<=[\d)}\]π])\s*([^\W\d_]+(?:\^?[23])?|[°$€]\s*[^\W\d_]?)$", text):
            name, is_unit, usual = unit(suffix.group(1), apart=suffix.group()[0].isspace())
            values = formulas.values(lower[: suffix.start()]) if is_unit else None
            if values is not None:
                return Quantity(values, _key(text), name, usual)
    if number is not None and re.fullmatch(r"[^\W\d_].*", after) and not re.search(r"\d(?<!\^\d)|[,;=]", after):
        return Quantity(number, _key(text), symbol + name, usual=False)
    return None


def _number(text: str) -> tuple[Values | None, int]:
    """The number that a text begins with, and its length."""
    if match := _MIXED.match(text):
        sign, whole, top, bottom = match.groups()
        value = Fraction(int(whole)) + Fraction(int(top), int(bottom))
    elif (match := _EXACT.match(text)) and not re.match(r"[\d.,/]*\d", text[match.end() :]):
        sign, digits, percent = match.groups()
        value = Fraction(digits.replace(",", "")) / (100 if percent else 1)
    else:
        return None, 0
    return (-value if sign == "-" else value,) * formulas.PLACES, match.end()


def _key(text: str) -> str:
    """Text as it is compared: without capitals, with one space between words and none around signs."""
    text = _TIGHT.sub(r"\1", " ".join(text.casefold().split()))
    return re.sub(r"([_^])\{(\w+)\}", r"\1\2", text)


def _same(first: Form, second: Form) -> bool:
    match first, second:
        case Wording(), Wording():
            return first.key == second.key
        case Quantity(), Quantity():
            return first.unit == second.unit and (first.key == second.key or close(first.values, second.values))
        case Many(), Many():
            return first.brackets == second.brackets and _same_items(first, second)
        case Equation(), Equation():
            if first.sign != second.sign:
                return False
            if _same(first.left, second.left) and _same(first.right, second.right):
                return True
            swapped = _same(first.left, second.right) and _same(first.right, second.left)
            return first.sign == "=" and (swapped or _same_zeros(first, second))
        case Choice(), Choice():
            return first.letter == second.letter and _same(first.words, second.words)
    return False


def _same_items(first: Many, second: Many) -> bool:
    if len(first.items) != len(second.items):
        return False
    if first.ordered or second.ordered:
        return all(map(_same, first.items, second.items))
    rest = list(second.items)
    for item in first.items:
        place = next((place for place, other in enumerate(rest) if _same(item, other)), None)
        if place is None:
            return False
        del rest[place]
    return True


def _same_zeros(first: Equation, second: Equation) -> bool:
    """Whether both are equations of formulas, and one is the other times a constant."""
    a, b, c, d = map(_values, (first.left, first.right, second.left, second.right))
    if a is None or b is None or c is None or d is None:
        return False
    return formulas.proportional(formulas.minus(a, b), formulas.minus(c, d))


def _values(side: Form) -> Values | None:
    if isinstance(side, Wording):
        return formulas.values(side.key)  # a letter
    return side.values if isinstance(side, Quantity) and not side.unit else None


def _says_more(more: Form, less: Form) -> bool:
    """Whether they are the same but for what only `more` says: an option's letter or words, an unknown, a unit."""
    match more, less:
        case Choice(), Wording() if more.letter == less:
            return True
        case Choice(), Choice():
            return more.letter == less.letter and _says_more(more.words, less.words)
        case Choice(), _:
            return _same(more.words, less) or _says_more(more.words, less) or _says_more(less, more.words)
        case Equation(), Equation():
            same = more.sign == less.sign and _same(more.left, less.left)
            return same and _says_more(more.right, less.right)
        case Equation(letter=True), _:
            return _same(more.right, less) or _says_more(more.right, less) or _says_more(less, more.right)
        case Quantity(), Quantity():
            return bool(more.unit) and more.usual and not less.unit and close(more.values, less.values)
    return False
