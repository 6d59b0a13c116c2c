"""The final answer of a response, as `\\boxed{…}` (Monet, DeepLatent) or `<answer>…</answer>` (LVR, VaLR).

Takes the text of a run, which holds no token from inside a latent block: ids sampled there (as released runners do)
must never reach the extraction.
"""

import re

_BRACES = re.compile(r"\\boxed\{|\{|\}")
_TEXT = re.compile(r"\\text\{([^{}]*)\}")


def extract(text: str) -> str | None:
    """The last complete answer in `text`, stripped, without LaTeX's `\\text{}`; None where there is none."""
    found = max([answer for answer in (_last_boxed(text), _last_tagged(text)) if answer], default=None)
    return _TEXT.sub(r"\1", found[1]).strip() if found else None


def _last_boxed(text: str) -> tuple[int, str] | None:
    """(end, content) of the last `\\boxed{…}` whose braces balance; of nested ones the outermost."""
    last, open_braces = None, []
    for brace in _BRACES.finditer(text):
        if brace.group() != "}":
            open_braces.append(brace)
        elif open_braces and (opening := open_braces.pop()).group() != "{":
            last = brace.end(), text[opening.end() : brace.start()]
    return last


def _last_tagged(text: str) -> tuple[int, str] | None:
    """(end, content) of the last `<answer>…</answer>`."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    return (end, text[start + len("<answer>") : end]) if start >= 0 else None
