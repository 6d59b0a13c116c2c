"""One spelling of text that is written in several ways: LaTeX, markdown, full-width letters, quotes, punctuation."""

import re
import unicodedata

_TEXT = (
    "text(?:bf|it|rm|sf|sc|sl|tt|up|md|normal)?|math(?:rm|bf|it|sf|tt|normal)|mbox|hbox|operatorname|bm|emph|underline"
)
_TEXT += "|boldsymbol"
_BRACES = re.compile(rf"\\{{1,2}}(?:{_TEXT})\s*\{{|\\{{1,2}}(?:boxed|fbox)\s*\{{|\\\\|\\[{{}}]|[{{}}]")
_BLANKS = re.compile(r"\\[hv]space\*?\s*\{[^{}]*\}|\\[hv]?phantom\s*\{[^{}]*\}")
_COMMAND = re.compile(r"\\([a-zA-Z]+|.)\s*", re.DOTALL)
_COMMANDS = {
    **dict.fromkeys(("quad", "qquad", "space", ",", ";", ":", " ", "\\", "displaystyle", "textstyle", "limits"), " "),
    **dict.fromkeys(("left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "!"), ""),
    **{letter: letter for letter in "%$#&_{}"},
    **dict.fromkeys(("dfrac", "tfrac", "cfrac"), "\\frac"),
    **{"lbrace": "{", "rbrace": "}", "times": "×", "cdot": "·", "div": "÷", "pm": "±", "infty": "∞", "prime": "'"},
    **{"le": "≤", "leq": "≤", "ge": "≥", "geq": "≥", "ne": "≠", "neq": "≠", "lt": "<", "gt": ">", "approx": "≈"},
    **{"degree": "°", "circ": "∘", "angle": "∠", "triangle": "△", "perp": "⊥", "parallel": "∥", "in": "∈"},
    **{"cup": "∪", "cap": "∩", "emptyset": "∅", "varnothing": "∅", "to": "→", "rightarrow": "→"},
    **dict.fromkeys(("ldots", "dots", "cdots"), "..."),
}
_GREEK = "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi pi rho sigma tau phi chi psi omega"
_COMMANDS |= {
    name: unicodedata.lookup(f"GREEK SMALL LETTER {name.replace('lambda', 'lamda')}") for name in _GREEK.split()
}

_SUPERSCRIPTS = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+")
_GROUPED = re.compile(r"(?<=\d)(?:\\,|\\ |[\u00a0\u2009\u202f]|\{,\})(?=\d{3}(?!\d))")
_SAME = str.maketrans(
    {
        **dict.fromkeys("‐‑‒–—―−﹣－", "-"),
        **dict.fromkeys("“”„‟″", '"'),
        **dict.fromkeys("‘’‚‛′", "'"),
        **dict.fromkeys("º˚", "°"),
        **dict.fromkeys("、،", ","),
        **dict.fromkeys("∙⋅", "·"),
        **dict.fromkeys("؛", ";"),
        "~": " ",
    }
)
_UNSEEN = re.compile("[\u00ad\u200b-\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_STOPS = ".,;:!?。؟।॥։¡¿ \t\r\n\f\v"
_TAGS = re.compile(r"<\s*answer\s*>((?:(?!<\s*(?:/\s*)?answer\s*>).)*)<\s*/\s*answer\s*>", re.DOTALL | re.IGNORECASE)
_PAIRS = (
    *(("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]"), ("```", "```"), ("``", "''"), ("`", "`")),
    *(("**", "**"), ("*", "*"), ("__", "__"), ("_", "_"), ('"', '"'), ("'", "'")),
    *(tuple(pair) for pair in ("«»", "‹›", "「」", "『』", "《》", "〈〉", "【】", "〔〕")),
)
_SIGNS = "#%&@"
"""Punctuation that answers a question by itself."""


def unwrap(text: str, *, boxes: bool = False) -> str:
    """`text` without LaTeX's `\\text{}`, `\\textbf{}`, `\\mathrm{}` and their like, and `\\boxed{}` where asked for.

    What they hold stays; braces that do not balance stay as they are. Takes time in proportion to the text.
    """
    if "\\" not in text:
        return text
    pieces, opened, last = [], [], 0
    for brace in _BRACES.finditer(text):
        pieces += [text[last : brace.start()], brace.group()]
        last = brace.end()
        if brace.group() == "}":
            command = pieces[opened[-1]] if opened else "{"
            if opened and command != "{" and (boxes or not command.lstrip("\\").startswith(("boxed", "fbox"))):
                pieces[opened[-1]] = pieces[-1] = ""
            del opened[-1:]
        elif brace.group() not in ("\\\\", "\\{", "\\}"):
            opened.append(len(pieces) - 1)
    return "".join([*pieces, text[last:]])


def plain(text: str) -> str:
    """`text` in one spelling; letters keep their case. Empty where nothing but wrapping and punctuation is there.

    - `\\boxed{}`, `<answer>`, `\\text{}` and its like, `$…$`, quotes, code marks and emphasis around the whole go,
      and so does punctuation at its ends, of any script; not the `!` of 5! nor the dots of 0.333…
    - Compatibility forms are the usual ones (NFKC: Ａ is A, ㎏ is kg), but x² is x^2 and 1½ is 1 1/2.
    - Dashes are one dash, quotes one quote; what cannot be seen goes; LaTeX's spaces are spaces, its names signs (\\pi
      is π, ^\\circ is °).
    """
    text = _letters(text.strip())
    if "\\" in text:
        text = _BLANKS.sub(" ", unwrap(text, boxes=True))
        text = _latex(text)
    text = " ".join(text.split())
    if "°" in text or "∘" in text:
        text = re.sub(r" ?\^ ?(?:[∘°]|\{ ?[∘°] ?\})", "°", text)
    for _ in range(8):
        before = text
        text = _bare(_trimmed(text))
        if text == before:
            break
    return text.replace("<=", "≤").replace(">=", "≥")


def blank(text: str) -> bool:
    """Whether `text` says nothing: only space, wrapping and punctuation. The signs # % & @ do say something."""
    if not text.isascii() or not text.isalnum():
        text = plain(text)
    return all(
        letter not in _SIGNS and (unicodedata.category(letter)[0] in "PZC" or letter in "`^") for letter in text
    )


def _letters(text: str) -> str:
    if text.isascii() and "~" not in text and "\\" not in text and "{," not in text:
        return text
    text = _GROUPED.sub(",", text)
    text = _SUPERSCRIPTS.sub(lambda match: f"^{{{match.group()}}}", text.translate(_SAME))
    text = re.sub(r"(?<=\d)(?=[¼-¾⅐-⅞])", " ", text)
    text = unicodedata.normalize("NFKC", text).translate(_SAME).replace("⁄", "/")
    return _UNSEEN.sub("", "".join(_digit(letter) for letter in text))


def _digit(letter: str) -> str:
    return letter if letter.isascii() or not letter.isdecimal() else str(unicodedata.decimal(letter))


def _latex(text: str) -> str:
    def sign(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in _COMMANDS:
            return match.group()
        spaced = match.group().endswith((" ", "\n")) and not name.isalpha()
        return _COMMANDS[name] + (" " if spaced else "")

    text = re.sub(r"\s+", " ", _COMMAND.sub(sign, text))  # the patterns below take quadratic time on many spaces
    text = re.sub(r"\\frac\s*(\d)\s*(\d)(?!\d)", r"\\frac{\1}{\2}", text)
    return re.sub(r"\\sqrt\s*(\d+|\w)(?!\w)", r"\\sqrt{\1}", text)


def _trimmed(text: str) -> str:
    text = text.strip()
    body = text.rstrip(_STOPS)
    tail = text[len(body) :]
    if body[-1:].isdigit() or body.endswith(")"):
        if tail.startswith("!") or ".." in tail:
            body = text
    start = body.lstrip(_STOPS)
    return f".{start}" if start[:1].isdigit() and re.search(r"(?<!\.)\.$", body[: len(body) - len(start)]) else start


def _bare(text: str) -> str:
    """Without one pair of marks around the whole that does not occur within."""
    if match := _TAGS.fullmatch(text):
        return match.group(1)
    for left, right in _PAIRS:
        if text.startswith(left) and text.endswith(right) and len(text) >= len(left) + len(right):
            inside = text[len(left) : len(text) - len(right)]
            if left not in inside and right not in inside:
                return inside
    return text
