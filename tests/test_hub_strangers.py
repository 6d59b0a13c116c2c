"""Answers in the Hub's place (sign-in pages, proxies) are told from its own; processors as they lie there today."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import close_session

from latent_core.checkpoints import hub
from latent_core.checkpoints.loading import find, load
from latent_core.checkpoints.published import PUBLISHED
from tests.hub_downloads import online, serving
from tests.twins import write_twin

LVR = "vincentleebang/LVR-7B"
HTML, JSON = {"Content-Type": "text/html; charset=utf-8"}, {"Content-Type": "application/json"}
PAGE = (200, HTML, "<!DOCTYPE html><title>Sign in</title>Accept the terms to go on line.")
AWAY = (302, {"Location": "/signin"}, "")


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    return write_twin(PUBLISHED[LVR], tmp_path_factory.mktemp("twin") / LVR)


@pytest.fixture
def served(repository, tmp_path, monkeypatch):
    with serving({LVR: repository}) as server:
        online(monkeypatch, server.url, tmp_path / "cache")
        monkeypatch.setattr("time.sleep", lambda _: None)
        yield server
        close_session()


@pytest.mark.parametrize(
    "portal",
    [
        {"api": PAGE, "files": PAGE},
        {"api": AWAY, "files": AWAY, "signin": PAGE},
        {"files": PAGE},
        {"files": AWAY, "signin": PAGE},
        {"api": (200, {}, PAGE[2])},
        {"api": (200, {}, "")},
        {"api": (200, HTML, "Anmeldung \xfcber")},
        {"api": (511, HTML, PAGE[2])},
        {"api": (403, HTML, PAGE[2])},
        {"files": (403, HTML, PAGE[2])},
        {"api": (407, {}, "")},
        {"api": (200, JSON, "[]")},
        {"api": (200, JSON, '"sign in"')},
        {"api": (200, JSON, '{"error": "sign in"}')},
    ],
)
def test_what_answers_in_the_hubs_place_is_told_from_it(served, portal):
    served.portal.update(portal)
    with pytest.raises(ValueError) as caught:
        find(LVR)
    sentence = str(caught.value)
    assert sentence.startswith(LVR) and "\n" not in sentence and sentence.endswith(".")
    assert (
        f"the Hub cannot be reached, for something else answers at {served.url}, such as the sign-in page" in sentence
    )
    assert not list(Path(constants.HF_HUB_CACHE).glob("*/snapshots/*/*"))
    served.portal.clear()
    assert find(LVR).is_dir()


def test_what_was_fetched_before_does_behind_a_sign_in_page(served):
    folder = find(LVR)
    served.portal.update({"api": PAGE, "files": PAGE})
    assert find(LVR) == folder and load(LVR).name == LVR


def test_an_answer_of_the_hub_itself_is_no_strangers(served):
    served.portal["api"] = (403, HTML | {"X-Error-Code": "GatedRepo"}, "")
    with pytest.raises(ValueError, match="is gated: accept its terms"):
        find(LVR)


def test_a_name_that_no_repository_has_is_a_sentence(served):
    with pytest.raises(ValueError, match="'a--b/c' is not the name of a repository: .*[^.]\\.$"):
        hub.fetch("a--b/c")


def test_a_processor_as_transformers_5_saves_it_is_fetched_and_loaded(served, repository):
    old = repository / "preprocessor_config.json"
    settings = json.loads(old.read_text())
    new = repository / "processor_config.json"
    try:
        old.unlink()
        new.write_text(json.dumps({"image_processor": settings, "processor_class": "Qwen2_5_VLProcessor"}))
        reasoner = load(LVR)
        assert reasoner.processor.token_side == 28 and reasoner.processor.image_processor.size["shortest_edge"] == 3136
        assert [file for file, _ in served.downloads("processor_config.json")] == ["processor_config.json"]
    finally:
        new.unlink(missing_ok=True)
        old.write_text(json.dumps(settings))
