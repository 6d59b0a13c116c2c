"""The app's handlers called as generators, its runner, its page: no browser."""

import copy
import dataclasses
import re
import threading
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import httpx
import numpy as np
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from app import components
from app.__main__ import main
from app.ask import answer_stream, new_scene, true_answer
from app.components import as_files, paths
from app.handlers import PHOTO, Handlers
from app.history import History
from app.names import method_label
from app.page import build
from app.pictures import Picture
from app.runner import Ask, Runner, paced, throttled
from app.server import serve
from latent_core import glyphs
from latent_core.checkpoints import embedded
from latent_core.checkpoints.published import PUBLISHED
from latent_core.config import LatentRange
from latent_core.trace import Trace
from tests.scripted import ScriptedReasoner

TAB = SimpleNamespace(session_hash="tab")


@pytest.fixture
def reasoner() -> ScriptedReasoner:
    return ScriptedReasoner()


@pytest.fixture
def runner(reasoner) -> Runner:
    return Runner(["scripted"], lambda name: reasoner)


@pytest.fixture
def scene():
    images, question, identity = new_scene("find", 7)
    return SimpleNamespace(files=as_files(images), images=images, question=question, identity=identity)


def values(runner, scene, question=None, **settings):
    asked = scene.question if question is None else question
    return list(answer_stream(runner, "tab", scene.files, asked, "scripted", scene.identity, **settings))


def test_a_run_ends_with_answer_truth_and_trace(runner, scene):
    *_, (done, _), (last, path) = values(runner, scene, latents=3)
    assert last == done and done["state"] == "finished"
    assert done["finish"]["answer"] == "ring"
    assert done["truth"] == glyphs.sample("find", 7, split="test").answer
    trace = Trace.load(path)
    assert trace.question == scene.question and len(trace.blocks[0].latents) == 3
    assert Path(path).name == f"inscape-run-{done['run']}.safetensors"


def test_another_question_has_no_truth(runner, scene):
    assert values(runner, scene, "Which one is red?")[-1][0]["truth"] is None


def test_another_image_has_no_truth(scene):
    ask = Ask(images=[Image.new("RGB", (96, 96))], question=scene.question, checkpoint="scripted", settings={})
    assert true_answer(scene.identity, ask, None) is None


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"latents": -1}, "K is -1"),
        ({"latents": 10**6}, "K is 1000000"),
        ({"temperature": None}, "The setting temperature is empty"),
        ({"seed": -3}, "Seed is -3"),
        ({"rule": "nothing"}, "Attention rule is 'nothing'"),
    ],
)
def test_bad_settings_become_a_sentence(runner, scene, given, sentence):
    (value, path), *_ = values(runner, scene, **given)
    assert value["state"] == "failed" and value["problem"].startswith(sentence) and path is None


def test_bad_questions_become_a_sentence(runner, scene):
    assert values(runner, scene, "")[-1][0]["problem"] == "The question is empty; write one."
    scene.files = list(scene.files) * 5
    assert "at most 4" in values(runner, scene)[-1][0]["problem"]


def test_unknown_checkpoints_become_a_sentence(runner, scene):
    *_, (value, _) = answer_stream(runner, "tab", scene.files, "?", "glyph-none", None)
    assert value["problem"].startswith("Unknown checkpoint 'glyph-none'")


def test_files_from_elsewhere_are_refused(runner, scene, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "secret.png")
    scene.files = [{"path": str(tmp_path / "secret.png")}]
    assert "was not uploaded" in values(runner, scene)[-1][0]["problem"]
    with pytest.raises(ValueError, match="was not uploaded"):
        paths([{"path": "/etc/passwd"}])


def test_a_failing_model_becomes_a_sentence(runner, reasoner, scene, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("out of memory\nstack of details")
        yield

    monkeypatch.setattr(reasoner, "stream", broken)
    value = values(runner, scene)[-1][0]
    assert value["state"] == "failed" and "(out of memory)" in value["problem"] and "stack" not in value["problem"]


def test_a_full_disk_loses_only_the_trace(runner, scene, monkeypatch):
    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr("app.ask.save_trace", full)
    value, path = values(runner, scene)[-1]
    assert path is None and value["state"] == "finished" and "No space left" in value["problem"]


def test_closing_the_handler_closes_the_engine(runner, reasoner, scene):
    handler = answer_stream(runner, "tab", scene.files, scene.question, "scripted", None, speed="slow")
    next(handler), next(handler)
    assert runner.running == 1
    handler.close()
    assert runner.running == 0 and reasoner.closed == 1


def test_stop_keeps_what_has_come(runner, scene):
    handler = answer_stream(runner, "tab", scene.files, scene.question, "scripted", scene.identity, speed="slow")
    next(handler), next(handler)
    runner.stop("tab")
    *_, (value, path) = handler
    assert value["finish"]["reason"] == "cancelled" and path is not None and runner.running == 0


def test_a_new_run_ends_the_one_before_in_its_session_only(runner, scene):
    streams = {
        name: answer_stream(runner, name[:5], scene.files, scene.question, "scripted", None, speed="slow")
        for name in ("tab 1 first", "tab 2", "tab 1 second")
    }
    for stream in streams.values():
        next(stream), next(stream)
    ends = {name: list(stream)[-1][0]["finish"]["reason"] for name, stream in streams.items()}
    assert ends == {"tab 1 first": "cancelled", "tab 2": "stop", "tab 1 second": "stop"}


def test_paced_waits_but_not_when_cancelled():
    cancelled = threading.Event()
    stream = paced(range(10), 1000.0, cancelled)
    assert [next(stream), next(stream)] == [0, 1]
    cancelled.set()
    assert list(stream) == []


def test_throttled_keeps_first_and_last():
    assert list(throttled(range(1000), seconds=60)) == [0, 999]
    assert list(throttled([1], seconds=60)) == [1] and list(throttled([], seconds=60)) == []


def test_pictures_made_here_are_not_looked_at_again(runner, monkeypatch):
    """A new scene's notice waits for no process; one that came from elsewhere is looked at once."""
    looks = []
    monkeypatch.setattr("app.handlers.PICTURES.run", lambda *given: looks.append(given) or Picture("PNG", False))
    handlers = Handlers(runner, History())
    files, *_, notice = handlers.scene("find")
    assert notice == handlers.photo_notice(files, "scripted") == "" and not looks
    elsewhere = as_files([Image.new("RGB", (64, 64))])
    for _ in range(2):
        assert PHOTO in handlers.photo_notice(elsewhere, "scripted") and len(looks) == 1


def test_check_keeps_the_former_image_when_the_new_one_is_bad(runner, scene, tmp_path, monkeypatch):
    monkeypatch.setattr("app.components.get_upload_folder", lambda: str(tmp_path))
    (tmp_path / "letter.png").write_text("dear sir")
    Image.effect_noise((64, 64), 80).save(tmp_path / "photo.png")
    bad, photo = {"path": str(tmp_path / "letter.png")}, {"path": str(tmp_path / "photo.png")}
    handlers = Handlers(runner, History())
    use, kept, notice = handlers.check([bad], [photo], "scripted", TAB)
    assert use == kept == [photo] and "letter.png is not an image" in notice
    use, _, notice = handlers.check([photo, bad], [], "scripted", TAB)
    assert use == [photo] and PHOTO in notice
    assert handlers.check([], [photo], "scripted", TAB) == ([], [], "")


def test_scenes_need_no_notice(runner, scene):
    assert Handlers(runner, History()).photo_notice(scene.files, "scripted") == ""


def test_preloading_a_broken_checkpoint_is_logged(caplog):
    def load(name):
        raise ValueError(f"{name} is corrupt.")

    Runner(["broken"], load).preload("broken").join()
    assert caplog.messages == ["broken is corrupt."]


def test_an_unknown_checkpoint_is_a_sentence_on_the_command_line(capsys):
    assert main(["--no-browser", "--checkpoint", "no-such-folder"]) == 2
    assert "no-such-folder" in capsys.readouterr().err


def test_the_page_is_built_and_its_state_can_be_copied(runner):
    page = build(runner, History())
    assert isinstance(page, gr.Blocks)
    for block in page.blocks.values():
        if isinstance(block, gr.State):
            assert copy.deepcopy(block.value) == block.value


@pytest.mark.slow
def test_a_program_can_do_what_the_page_does(runner, reasoner, tmp_path):
    page = serve(runner, host="127.0.0.1", port=None, wait=False)
    try:
        client = Client(page.local_url, verbose=False, download_files=str(tmp_path))
        assert [one["name"] for one in client.predict(api_name="/checkpoints")] == ["scripted"]
        (image,), scene = client.predict("count", 5, api_name="/scene")
        assert scene["answer"] == glyphs.sample("count", 5, split="test").answer
        result, trace = client.predict([handle_file(image)], scene["question"], latents=4, api_name="/ask")
        assert result["answer"] == "ring" and result["latents"] == len(result["looks"]) == 4
        assert Trace.load(trace).settings.latents == 4
        reasoner.config = dataclasses.replace(reasoner.config, latents=LatentRange(default=3))
        answer = client.predict([handle_file(image)], scene["question"], api_name="/ask")[0]
        assert answer["latents"] == 3  # where none is given, the checkpoint's own K
        figures = client.predict(handle_file(trace), api_name="/inspect")
        assert np.array(figures["homogeneity"]["blocks"][0]["matrix"]).shape == (4, 4) and "view" not in figures
        figures = client.predict(handle_file(trace), x1=0.5, y1=0.5, api_name="/region")
        assert (figures["tokens"], figures["of"]) == (9, 36) and len(figures["by_cosine"]) > 4
        figures = client.predict(handle_file(trace), handle_file(trace), api_name="/compare")
        assert [pair["cosine"] for pair in figures["pairs"]] == [1.0] * 4 and figures["runs"][0] == figures["runs"][1]
        with pytest.raises(Exception, match="is not a trace that can be read"):
            client.predict(handle_file(image), api_name="/inspect")
        with pytest.raises(Exception, match="must hold"):
            client.predict(handle_file(trace), x1=0, api_name="/region")
        with pytest.raises(Exception, match="K is -1"):
            client.predict([handle_file(image)], "?", latents=-1, api_name="/ask")
        assert httpx.get(f"{page.local_url}health").json() == {
            "status": "ok",
            "checkpoints": ["scripted"],
            "loaded": ["scripted"],
            "running": 0,
        }
        public = client.view_api(return_format="dict")["named_endpoints"]
        assert set(public) == {"/ask", "/inspect", "/region", "/compare", "/scene", "/checkpoints"}
    finally:
        page.close()


def test_k_is_what_a_checkpoint_was_taught_with_until_it_is_set_for_that_one(runner, reasoner):
    runner.known = ("scripted", "other")
    handlers, taught = Handlers(runner, History()), reasoner.config
    chosen = {"now": "scripted", "k": {}}

    def choose(checkpoint, latents, **latent_range):
        nonlocal chosen
        reasoner.config = dataclasses.replace(taught, latents=LatentRange(**latent_range))
        update, chosen = handlers.settle(checkpoint, latents, chosen)
        return update.get("value", latents), update["maximum"]

    assert choose("other", 8, default=4) == (4, 16)
    assert choose("scripted", 4, default=8) == (8, 16)
    assert choose("other", 12, default=4) == (4, 16)  # 12 was chosen for another
    assert choose("scripted", 3, default=8) == (12, 16)  # and comes back with it
    assert choose("other", 12, default=4) == (3, 16)
    assert choose("scripted", None, default=8) == (12, 16) and choose("other", 12, default=4) == (4, 16)
    assert choose("scripted", 4, default=8, max=9) == (8, 9)  # what it no longer allows


@pytest.mark.parametrize("name", PUBLISHED)
def test_k_of_a_published_checkpoint_is_its_own(runner, reasoner, name):
    runner.known, reasoner.config = (name,), PUBLISHED[name].config
    update, chosen = Handlers(runner, History()).settle(name, 12, {"now": "glyph-monet", "k": {}})
    given = PUBLISHED[name].config.latents
    assert update["value"] == given.default and update["maximum"] == given.max >= given.default >= given.min
    assert chosen == {"now": name, "k": {"glyph-monet": 12}}


def test_methods_are_spelled_as_in_their_papers():
    names = ("glyph-monet-faithful", "glyph-lvr-rl", "someone/valr-7B", "runs/deeplatent/")
    assert [method_label(name) for name in names] == ["Monet faithful", "LVR RL", "VaLR 7B", "DeepLatent"]


def test_monet_is_met_first():
    assert embedded.offered()[0] == "glyph-monet" and not any("-stage" in name for name in embedded.offered())


@pytest.mark.parametrize("view", ["run_view", "region_view", "inspect_view", "compare_view"])
def test_scripts_that_run_together_declare_no_function_twice(view):
    """The second would replace the first without a word."""
    script = getattr(components, view)().js_on_load
    names = re.findall(r"^(?:async )?function\*? (\w+)", script, re.MULTILINE)
    assert names and sorted(set(names)) == sorted(names)
