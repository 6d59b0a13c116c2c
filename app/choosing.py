"""Events that fill the fields of the Ask page with an earlier run's question, and put aside what is being written."""

from collections.abc import Callable
from typing import Any

import gradio as gr

from app import traces
from app.ask import Scene
from app.components import Files, paths
from app.errors import as_user_errors
from app.forms import Form, form_of, put_aside, still_there
from app.handlers import asked_with, session_of
from app.history import History
from app.limits import Limits
from app.workers import TRACES


class Choosing:
    """The events that fill the fields of the Ask page.

    Args:
        notice: (images, checkpoint) → HTML to show beside them.
    """

    def __init__(self, history: History, limits: Limits, notice: Callable[[Files, str], str]) -> None:
        self.history, self.limits, self.notice = history, limits, notice

    @as_user_errors
    def choose(
        self,
        files: Files,
        question: str,
        scene: Scene | None,
        drafts: list[Form],
        checkpoint: str,
        event: gr.EventData,
        request: gr.Request,
    ) -> tuple[Any, ...]:
        """The field values of an earlier run that is shown again, with what was being written put aside.

        Images, the same to remember, question, scene, notice, family, drafts, and the button that brings them back.
        """
        session = session_of(request)
        self.limits.check_question(question)
        self.limits.check_images(len(paths(files)))
        chosen = self.history.find(session, asked_with(event).get("run"))
        if chosen.form and still_there(chosen.form):
            form = chosen.form
        else:
            form = form_of(TRACES.run(self.limits, traces.asked, str(chosen.path)))
        earlier = [run.form for run in self.history.runs(session) if run.form]
        drafts = put_aside(drafts, Form(files=files, question=question, scene=scene), earlier)
        return self._filled(form, drafts, checkpoint)

    @as_user_errors
    def resume(self, drafts: list[Form], checkpoint: str) -> tuple[Any, ...]:
        """The field values of what was being written last; the same as of `choose`."""
        if not drafts:
            raise ValueError("Nothing was put aside.")
        *rest, form = drafts
        return self._filled(form, rest, checkpoint)

    def _filled(self, form: Form, drafts: list[Form], checkpoint: str) -> tuple[Any, ...]:
        files, question, scene = form["files"], form["question"], form["scene"]
        family = scene["family"] if scene else gr.skip()
        notice = self.notice(files, checkpoint)
        return files, files, question, scene, notice, family, drafts, gr.update(visible=bool(drafts))
