"""What breaks while a visitor waits: a sentence for them, nothing half-written, and the next run works."""

import dataclasses
import errno
import os
import shutil
import time
from pathlib import Path

import gradio as gr
import pytest
from gradio.utils import get_upload_folder

from app.ask import answer_stream, new_scene
from app.components import as_files
from app.errors import UNEXPECTED, as_user_errors
from app.history import History
from app.inspect_run import run_again
from app.limits import PUBLIC
from app.runner import Runner
from app.server import serve
from latent_core.checkpoints import embedded
from latent_core.checkpoints import loading as checkpoints
from tests import hostile
from tests.scripted import ScriptedReasoner
from tests.visitor import Tab, Visitor, result


def ask(runner: Runner, checkpoint: str = "scripted") -> tuple[dict, str | None]:
    """The last value and path of a run."""
    pictures, question, scene = new_scene("find", 7)
    return list(answer_stream(runner, "tab", as_files(pictures), question, checkpoint, scene))[-1]


def kept() -> set[Path]:
    """All files of visitors, drafts included."""
    return {path for path in Path(get_upload_folder()).rglob("*") if "run" in path.name}


class Breaking(ScriptedReasoner):
    """Raises in the middle of its first run."""

    def __init__(self, failure: Exception) -> None:
        super().__init__()
        self.failure: Exception | None = failure

    def _stream(self, images, question, settings):
        for number, event in enumerate(super()._stream(images, question, settings)):
            if number == 6 and self.failure is not None:
                failure, self.failure = self.failure, None
                raise failure
            yield event


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (RuntimeError("CUDA error: out of memory\nin a kernel"), "(CUDA error: out of memory)"),
        (MemoryError(), "(memory ran out)"),
        (OSError(errno.EIO, "Input/output error", "/secret/model"), "(its files cannot be read)"),
        (ValueError("The image cannot be used."), "The image cannot be used."),
    ],
)
def test_a_model_that_breaks_in_the_middle_is_told_and_the_next_run_works(failure, words):
    before, reasoner = kept(), Breaking(failure)
    runner = Runner(["scripted"], lambda name: reasoner)
    value, path = ask(runner)
    assert value["state"] == "failed" and words in value["problem"] and "/secret" not in value["problem"]
    assert path is None and runner.running == 0 and reasoner.closed == 1 and kept() == before
    assert ask(runner)[0]["finish"]["answer"] == "ring"


def full_disk(monkeypatch) -> None:
    def fsync(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("latent_core.files.os.fsync", fsync)


def test_a_full_disk_costs_the_trace_only_and_leaves_no_draft(monkeypatch):
    before, runner = kept(), Runner(["scripted"], lambda name: ScriptedReasoner())
    with monkeypatch.context() as patched:
        full_disk(patched)
        value, path = ask(runner)
    assert path is None and value["finish"]["answer"] == "ring"
    assert value["problem"].endswith("its trace could not be saved: No space left on device")
    assert kept() == before
    assert ask(runner)[1] is not None


def test_a_full_disk_is_told_where_a_run_is_made_again(monkeypatch):
    runner, history = Runner(["scripted"], lambda name: ScriptedReasoner()), History()
    history.add("tab", 1, "run", ask(runner)[1])
    full_disk(monkeypatch)
    with pytest.raises(ValueError, match="could not be saved: No space left on device"):
        run_again(runner, history, "tab", "1", {})
    assert len(history.runs("tab")) == 1 + len(history.recorded)


def test_a_program_gets_its_answer_though_the_disk_is_full(monkeypatch):
    page = serve(Runner(["scripted"], lambda name: ScriptedReasoner()), host="127.0.0.1", port=None, wait=False)
    try:
        visitor, (pictures, *_) = Visitor(page.local_url), new_scene("find", 7)
        image = visitor.file(hostile.written(pictures[0], "PNG"))
        full_disk(monkeypatch)
        ok, response = visitor.ask("Which?", image)
        answer, trace = result(response)
        assert ok and trace is None and answer["answer"] == "ring" and "No space left" in answer["problem"]
    finally:
        page.close()


def test_a_model_whose_folder_goes_is_told_and_found_again(tmp_path, monkeypatch):
    for name in ("glyph-text", "glyph-monet"):
        shutil.copytree(embedded.EMBEDDED / name, tmp_path / "here" / name)
    monkeypatch.setattr(embedded, "EMBEDDED", tmp_path / "here")
    runner = Runner(["glyph-text", "glyph-monet"], checkpoints.load)
    assert ask(runner, "glyph-text")[0]["finish"]["answer"]
    os.rename(tmp_path / "here", tmp_path / "gone")
    assert ask(runner, "glyph-text")[0]["finish"]["answer"]  # in memory already
    value, _ = ask(runner, "glyph-monet")
    assert value["state"] == "failed" and "no checkpoint or folder 'glyph-monet'" in value["problem"]
    os.rename(tmp_path / "gone", tmp_path / "here")
    for file in ("tokenizer.json", "model.safetensors", "config.json"):
        os.rename(tmp_path / "here/glyph-monet" / file, tmp_path / file)
        value, _ = ask(runner, "glyph-monet")
        assert value["state"] == "failed" and str(tmp_path) not in value["problem"], value["problem"]
        os.rename(tmp_path / file, tmp_path / "here/glyph-monet" / file)
    assert ask(runner, "glyph-monet")[0]["finish"]["answer"]


def test_a_tab_that_closes_in_the_middle_frees_the_model():
    reasoner = ScriptedReasoner()
    runner, before = Runner(["scripted"], lambda name: reasoner), kept()
    pictures, question, scene = new_scene("find", 7)
    stream = answer_stream(runner, "tab", as_files(pictures), question, "scripted", scene, speed="slow")
    next(stream), next(stream)
    assert runner.running == 1
    stream.close()
    runner.forget("tab")
    assert runner.running == 0 and reasoner.closed == 1 and kept() == before and not runner._sessions


def test_a_tab_that_closes_while_it_waits_leaves_the_queue():
    """Also one that does not listen at that moment, and the next in line is served."""
    slow = ScriptedReasoner(delay=0.2)
    runner = Runner(["scripted"], lambda name: slow, limits=dataclasses.replace(PUBLIC, at_once=1))
    page = serve(runner, host="127.0.0.1", port=None, wait=False)
    try:
        tabs = [Tab(page.local_url, "scripted") for _ in range(6)]
        image = tabs[0].file(hostile.written(new_scene("find", 7)[0][0], "PNG"))
        for tab in tabs[:5]:
            tab.press_unheard("Which?", image).raise_for_status()
        waiting = len(page._queue)
        for tab in tabs[1:5]:
            tab.close()
        end = time.monotonic() + 10
        while len(page._queue) > 0 or runner.running == 0:  # the first goes on
            assert time.monotonic() < end, f"{len(page._queue)} of {waiting} still wait, {runner.running} run"
            time.sleep(0.05)
        assert waiting >= 4
        slow.delay = 0
        ok, answer = tabs[5].press("Which?", image)
        assert ok and "ring" in answer
    finally:
        page.close()


def test_a_failure_that_nobody_foresaw_is_logged_and_told_without_its_inside(caplog):
    @as_user_errors
    def handler(value):
        raise ZeroDivisionError(f"/secret/{value}")

    @as_user_errors
    def stream():
        yield 1
        raise KeyError("/secret")

    with pytest.raises(gr.Error, match=UNEXPECTED):
        handler(3)
    parts = stream()
    assert next(parts) == 1
    with pytest.raises(gr.Error, match=UNEXPECTED):
        next(parts)
    assert caplog.messages == ["A handler failed."] * 2
