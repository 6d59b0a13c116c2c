"""The question as it stands in the page's fields: what a run was asked with, and what a person is writing."""

from collections.abc import Sequence
from typing import Any, TypedDict

from app.components import Files, as_files, paths
from app.traces import Asked

MOST_DRAFTS = 8
"""Questions put aside; the oldest goes."""


class Form(TypedDict):
    """Images, question, and identity of the scene that they are, if they are one. JSON, for it lies in gr.State."""

    files: Files
    question: str
    scene: dict[str, Any] | None


def form_of(asked: Asked) -> Form:
    """The form of a run that was not asked in the fields: its question, and its images as the model saw them."""
    return Form(files=as_files(asked.images), question=asked.question, scene=None)


def still_there(form: Form) -> bool:
    """Whether the images of a form are still kept."""
    try:
        paths(form["files"])
    except ValueError:
        return False
    return True


def put_aside(drafts: Sequence[Form], form: Form, asked: Sequence[Form]) -> list[Form]:
    """`drafts` and, as the last, what stands in the fields, unless it was asked or put aside before or is empty."""
    written = bool(form["files"] or form["question"].strip())
    if not written or any(_same(form, other) for other in (*asked, *drafts)):
        return list(drafts)
    return [*drafts, form][-MOST_DRAFTS:]


def _same(a: Form, b: Form) -> bool:
    named = [[file["path"] for file in form["files"] or []] for form in (a, b)]
    return named[0] == named[1] and a["question"].strip() == b["question"].strip()
