"""The Inspect and Compare pages' events, and the history that keeps their runs."""

import base64
import os
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from gradio.utils import get_upload_folder

from app.artifacts import Artifacts
from app.handlers import Comparing, Handlers, Inspecting
from app.history import RECORDED, History
from app.inspect_run import compared, inspected, run_again
from app.limits import OWN
from app.runner import Runner
from latent_core import load
from latent_core.checkpoints.embedded import available, beside, offered
from latent_core.trace import Trace

RELATE = RECORDED / "relate_glyph-monet.safetensors"
TAB = SimpleNamespace(session_hash="tab")


@pytest.fixture(scope="module")
def trace() -> Trace:
    return Trace.load(RELATE)


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(offered(), load, others=available())


@pytest.fixture(scope="module")
def artifacts(runner) -> Artifacts:
    return Artifacts(runner.known)


@pytest.fixture
def history(tmp_path, trace) -> History:
    runs = History()
    trace.save(tmp_path / "run.safetensors")
    runs.add("tab", 7, "seven", tmp_path / "run.safetensors")
    return runs


def event(**data):
    return SimpleNamespace(_data=data)


def test_a_run_with_broken_numbers_is_refused(runner, history, artifacts, trace, tmp_path):
    broken = replace(trace, start=replace(trace.start, image_states=trace.start.image_states * float("nan")))
    broken.save(tmp_path / "nan.safetensors")
    history.add("tab", 9, "nan", tmp_path / "nan.safetensors")
    value = Inspecting(runner, history).open(event(id="9"), TAB)
    assert "not finite" in value["problem"] and "view" not in value


def test_history_keeps_names_and_forgets(history, tmp_path):
    assert [kept.id for kept in history.runs("tab")][0] == "7" and len(history.runs("tab")) == 1 + len(
        history.recorded
    )
    assert history.runs("another tab") == history.recorded
    history.rename("tab", "7", "  my   name ")
    assert history.choices("tab")[0] == ("my name", "7")
    for id, name, words in (("7", "", "1 to 60 letters"), ("7", "x" * 61, "has 61"), ("8", "x", "your own")):
        with pytest.raises(ValueError, match=words):
            history.rename("tab", id, name)
    for id in ("recorded:find_glyph-monet", "../../etc/passwd", None, 7):
        with pytest.raises(ValueError):
            history.remove("tab", id)
    with pytest.raises(ValueError, match="no longer kept"):
        Trace.load(history.find("another tab", "7").path)
    history.remove("tab", "7")
    assert not (tmp_path / "run.safetensors").exists() and history.runs("tab") == history.recorded
    for number in range(OWN.session_runs + 5):
        history.add("tab", number, "run", tmp_path / "x")
    assert [kept.id for kept in history.runs("tab")][: OWN.session_runs] == [str(n) for n in range(24, 4, -1)]
    history.forget("tab")
    assert history.runs("tab") == history.recorded


def test_artifacts_are_looked_for_under_offered_names_only(tmp_path, artifacts):
    (tmp_path / "bank.safetensors").write_bytes(b"hostile")
    assert artifacts.bank(str(tmp_path)) is None and artifacts.depicter("../checkpoints/glyph-monet") is None
    assert artifacts.bank("glyph-text") is None and set(artifacts.measured("glyph-monet")) == {"grounding", "depict"}
    with pytest.raises(ValueError, match=r"bank\.safetensors is no reference bank"):
        Artifacts((str(tmp_path),)).bank(str(tmp_path))
    assert beside("glyph-monet", "no such file") is None


def test_reading_by_layer_needs_the_model(runner, history, artifacts):
    value = inspected(runner, history, "tab", "7")
    assert value["known"] and value["lens"]["layers"] is None and value["rollout"] is None
    value = inspected(runner, history, "tab", "7", model=True)
    assert len(value["lens"]["layers"]) == 16 and value["left"] is None
    assert (
        len(base64.b64decode(value["rollout"]["maps"])) == 36 * len(value["of"]) == 36 * len(value["rollout"]["peaks"])
    )
    assert inspected(runner, history, "tab", "7")["lens"]["layers"] == value["lens"]["layers"]


def test_the_same_question_again(artifacts, runner, history, trace):
    repeated = run_again(runner, history, "tab", "7", {"latents": 2})
    again = Trace.load(repeated.path)
    assert [len(block.latents) for block in again.blocks] == [2, 2] and again.question == trace.question
    assert all(torch.equal(a, b) for a, b in zip(again.images, trace.images, strict=True))
    same = Trace.load(run_again(runner, history, "tab", "7", {}).path)
    assert same.text == trace.text  # the picture that the model saw is the picture it is shown again
    text = Trace.load(run_again(runner, history, "tab", "7", {"checkpoint": "glyph-text"}).path)
    assert text.source.method == "text" and not text.blocks
    other = Trace.load(run_again(runner, history, "tab", "7", {"checkpoint": "glyph-lvr"}).path)
    assert other.settings.latents == 4  # K was the checkpoint's default, and is the other one's
    chosen = {"checkpoint": "glyph-lvr", "latents": 2}
    assert Trace.load(run_again(runner, history, "tab", "7", chosen).path).settings.latents == 2
    sides = compared(runner, history, "tab", "7", repeated.id)
    assert sides["same"] and [side["id"] for side in sides["sides"]] == ["7", repeated.id] and len(sides["pairs"]) == 4


@pytest.mark.parametrize(
    "changes",
    [{"latents": 99}, {"latents": "8"}, {"latents": True}, {"mode": "loud"}, {"seed": 3}, {"checkpoint": "/"}],
)
def test_settings_that_do_not_exist(runner, history, changes):
    with pytest.raises(ValueError):
        run_again(runner, history, "tab", "7", changes)


def test_pages_open_with_the_run_that_is_shown_and_keep_it(runner, history, artifacts):
    history.add("tab", 9, "nine", history.find("tab", "7").path)
    page, compare = Inspecting(runner, history), Comparing(runner, history)
    shown = {"run": "7", "at": 1.5}
    value, entered = page.enter(shown, "", TAB)
    assert value["id"] == "7" and [run for _, run in value["runs"]][:2] == ["9", "7"]
    value, again = page.enter(shown, entered, TAB)
    assert again == entered and "view" not in value and value["runs"][0] == ("nine", "9")  # only the list is new
    value, entered = page.enter({**shown, "at": 2.5}, entered, TAB)
    assert value["id"] == "7"  # asked for once more, from a page that may show another run meanwhile
    assert page.enter({"run": "9", "at": 3.0}, entered, TAB)[0]["id"] == "9"
    value, entered = compare.enter(shown, "", TAB)
    assert [side["id"] for side in value["sides"]] == ["7", "9"] and value["checkpoints"][0] in runner.known
    assert "sides" not in compare.enter(shown, entered, TAB)[0]
    assert [side["id"] for side in compare.enter({"run": "9", "at": 4}, entered, TAB)[0]["sides"]] == ["9", "7"]


@pytest.mark.parametrize("shown", [None, {}, {"run": 7}, {"run": ["7"]}, {"run": "8", "at": 1}, "7", [1]])
def test_pages_open_with_the_newest_run_where_none_is_shown(runner, history, artifacts, shown):
    page = Inspecting(runner, history)
    value, newest = page.enter(shown, "", TAB)
    assert newest == "7" and value["name"] == "seven" and value["runs"][0] == ("seven", "7")
    value, again = page.enter(shown, "7", TAB)
    assert again == "7" and "view" not in value
    value, newest = page.enter(shown, "", SimpleNamespace(session_hash="new"))
    assert newest.startswith("recorded:") and not value["own"] and value["trace"] is None
    value, newest = Comparing(runner, history).enter(shown, "", TAB)
    assert [side["id"] for side in value["sides"]][0] == "7" and value["checkpoints"][0] in runner.known


@pytest.mark.parametrize(
    "data", [{}, {"id": None}, {"id": ["7"]}, {"id": {"x": 1}}, {"id": "../x"}, {"id": "7" * 10_000}]
)
def test_what_a_page_cannot_ask_for_becomes_a_sentence(runner, history, artifacts, data):
    page, compare = Inspecting(runner, history), Comparing(runner, history)
    for handler in (page.open, page.read, page.rename, page.remove, page.upload, compare.pair, compare.again):
        value = handler(event(**data), TAB)
        assert "view" not in value and value["problem"].strip() and value["runs"]
    asked = Handlers(runner, history).region(event(**data), TAB)
    assert asked["problem"].strip()
    assert compare.again(event(id="7", changes="K"), TAB)["problem"] == "Name the setting that should change."


def test_a_trace_of_anybody_is_opened_as_a_run_of_this_session(runner, history, artifacts, tmp_path):
    page = Inspecting(runner, history)
    outside = tmp_path / "run.safetensors"
    assert "was not uploaded" in page.upload(event(path=str(outside)), TAB)["problem"]
    folder = f"{get_upload_folder()}/test"
    os.makedirs(folder, exist_ok=True)
    mine = Trace.load(outside)
    replace(mine, source=replace(mine.source, checkpoint="/etc")).save(f"{folder}/mine.safetensors")
    value = page.upload(event(path=f"{folder}/mine.safetensors"), TAB)
    assert value["name"].startswith("Opened: ") and not value["known"] and value["space"]["labels"] == []
