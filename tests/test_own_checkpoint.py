"""A checkpoint of one's own in a folder, `python -m app --model runs/mine`: offered by its name, fully usable."""

import shutil
from types import SimpleNamespace

import pytest

from app.__main__ import main, prepared
from app.artifacts import Artifacts
from app.ask import new_scene, opening
from app.components import as_files
from app.handlers import Handlers
from app.history import History
from app.inspect_run import inspected, run_again
from app.names import method_label
from app.page import build
from app.runner import Runner
from latent_core.checkpoints import embedded
from latent_core.checkpoints import loading as checkpoints
from latent_core.checkpoints.published import full_name
from latent_core.trace import Trace

TAB = SimpleNamespace(session_hash="tab")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What a run of the trainers leaves."""
    path = tmp_path_factory.mktemp("runs") / "mine" / "final"
    shutil.copytree(embedded.EMBEDDED / "glyph-lvr", path)
    return path


@pytest.fixture
def runner(folder):
    given = prepared(str(folder.parent))
    return Runner([*given, *embedded.offered()], checkpoints.load, others=embedded.available(), folders=given)


def test_it_is_called_by_its_run(folder, monkeypatch):
    assert full_name(folder) == "mine"
    assert prepared(str(folder)) == prepared(str(folder.parent)) == {"mine": str(folder)}
    assert full_name(folder.parent) == "mine" and full_name(embedded.EMBEDDED / "glyph-lvr") == "glyph-lvr"
    monkeypatch.chdir(folder)
    assert full_name(".") == "mine" and method_label("mine") == "Mine"


def test_the_page_opens_with_its_own_settings_before_it_is_loaded(runner, folder):
    blocks = build(runner, History()).blocks.values()
    (latents,) = [block.value for block in blocks if "K, latents" in str(getattr(block, "label", ""))]
    assert latents == 4 and not runner.loaded
    assert opening("mine", str(folder))[0].default == 4 and opening("mine")[0].default == 8


def test_its_runs_are_known_to_inspect_and_compare(runner, folder):
    history = History()
    handlers = Handlers(runner, history)
    pictures, question, scene = new_scene("find", 7)
    settings = ("latent", 4, "real", 0.0, 1.0, 0, 1.0, 64, 8, 0, "own")
    *_, value = handlers.ask(None, as_files(pictures), question, scene, "mine", *settings, TAB)
    assert value["state"] == "finished" and value["finish"]["answer"]
    (kept,) = [run for run in history.runs("tab") if not run.id.startswith("recorded")]
    assert Trace.load(kept.path).source.checkpoint == "mine"
    artifacts = Artifacts(runner.known, runner.folders)
    shown = inspected(runner, history, "tab", kept.id, model=True)
    assert shown["known"] and shown["lens"]["layers"] and "grounding" in artifacts.measured("mine")
    again = Trace.load(run_again(runner, history, "tab", kept.id, {"latents": 2}).path)
    assert again.source.checkpoint == "mine" and [len(block.latents) for block in again.blocks] == [2]


def test_one_whose_method_is_not_known_is_refused_at_once(folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "other")
    (tmp_path / "other" / "method.json").unlink()
    assert main(["--no-browser", "--model", str(tmp_path / "other")]) == 2
    assert "other has no method.json" in capsys.readouterr().err
    (tmp_path / "other" / "method.json").write_text("{}")
    assert main(["--no-browser", "--model", str(tmp_path / "other")]) == 2
    assert "method.json of other cannot be used: method.json lacks the field method." in capsys.readouterr().err
