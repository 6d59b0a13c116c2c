"""The final answer of a response, as `\\boxed{…}` (Monet, DeepLatent) or `<answer>…</answer>` (LVR, VaLR).

Takes the text of a run, which holds no token from inside a latent block: ids sampled there (as released runners do)
must never reach the extraction. Whether two answers are equal is decided in grading.py.
"""

import re

from latent_core.spelling import blank, unwrap

_BRACES = re.compile(r"\\{1,2}boxed\s*\{|\\\\|\\[{}]|[{}]")
_TAG = re.compile(r"<\s*(?:(/)\s*)?answer\s*>", re.IGNORECASE)
_MARKS = re.compile(r"\\boxed|<\s*(?:/\s*)?answer\s*>", re.IGNORECASE)

Span = tuple[int, int]
"""Begin and end of an answer within a text."""


def extract(text: str) -> str | None:
    """The last complete answer in `text`, stripped, without LaTeX's `\\text{}`, `\\textbf{}` and their like.

    Of a box within tags or tags within a box it is the inner one, of a box within a box the outer one. An answer that
    says nothing (`\\boxed{}`, `\\boxed{\\text{}}`, `<answer> . </answer>`) is none; None where there is no other.
    """
    span = find(text)
    return None if span is None else _content(text[slice(*span)])


def find(text: str) -> Span | None:
    """The span of the last complete answer in `text`, within box or tags."""
    spans = sorted(boxes(text) + tags(text), key=lambda span: span[1], reverse=True)
    best = None
    for start, end in spans:
        if best is not None and not best[0] <= start <= end <= best[1]:
            continue
        if not blank(text[start:end]):
            if best is not None:
                return start, end
            best = start, end
    return best


def truth(text: str) -> str | None:
    """The true answer that a row of data gives: in a box, in tags or by itself. None where that says nothing."""
    answer = extract(text)
    if answer is None and not _MARKS.search(text) and not blank(text):
        answer = _content(text)
    return answer


def _content(text: str) -> str:
    text = unwrap(text).strip()
    for _ in range(8):  # boxes around the whole
        spans = boxes(text)
        if len(spans) != 1 or not text.startswith("\\") or text[: spans[0][0]].count("{") != 1:
            break
        if spans[0][1] != len(text) - 1:
            break
        text = text[slice(*spans[0])].strip()
    return text


def boxes(text: str) -> list[Span]:
    """Contents of all `\\boxed{…}` whose braces balance; of nested ones the outermost."""
    spans: list[Span] = []
    opened = []
    for brace in _BRACES.finditer(text):
        if brace.group() == "}":
            if opened and (opening := opened.pop()).group() != "{":
                while spans and spans[-1][0] > opening.start():
                    spans.pop()
                spans.append((opening.end(), brace.start()))
        elif brace.group() not in ("\\\\", "\\{", "\\}"):
            opened.append(brace)
    return spans


def tags(text: str) -> list[Span]:
    """Contents of all `<answer>…</answer>`."""
    spans: list[Span] = []
    begin = None
    for tag in _TAG.finditer(text):
        if not tag.group(1):
            begin = tag.end()
        elif begin is not None:
            spans.append((begin, tag.start()))
            begin = None
    return spans
