"""A published checkpoint on the page: the twin of Monet-7B answers through the page's handlers, in a stream."""

from types import SimpleNamespace

import pytest
from PIL import Image

from app.ask import opening
from app.components import as_files
from app.handlers import SAMPLING, Handlers
from app.history import History
from app.names import method_label
from app.page import build
from app.runner import Runner
from latent_core.checkpoints import embedded
from latent_core.checkpoints.loading import load
from latent_core.checkpoints.placement import Machine
from latent_core.checkpoints.published import PUBLISHED
from latent_core.config import LatentRange, Sampling
from latent_core.trace import Trace
from tests.twins import write_twin

MONET = "NOVAglow646/Monet-7B"
TAB = SimpleNamespace(session_hash="tab")


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    return write_twin(PUBLISHED[MONET], tmp_path_factory.mktemp("twin"))


@pytest.fixture
def runner(twin, monkeypatch):
    """What `python -m app --model Monet-7B` offers, with the twin where the Hub would have been asked."""
    monkeypatch.setattr("latent_core.checkpoints.loading.fetch", lambda repository, subfolder: twin)
    return Runner([MONET, *embedded.offered()], load)


def fields(runner) -> dict[str, object]:
    """The values of the page's settings when it opens, by label."""
    return {
        block.label: block.value
        for block in build(runner, History()).blocks.values()
        if getattr(block, "visible", True) is True and hasattr(block, "label") and hasattr(block, "value")
    }


@pytest.mark.slow
@pytest.mark.parametrize("small", [True, False])
def test_the_twin_answers_on_the_page_in_a_stream(runner, monkeypatch, small):
    """In fp32, as its size demands, and in bf16, as the size of the real one does."""
    monkeypatch.setattr("latent_core.checkpoints.placement.SMALL", 10**9 if small else 0)
    monkeypatch.setattr("latent_core.checkpoints.placement.machine", lambda: Machine(memory=64 * 10**9))
    handlers = Handlers(runner, History())
    files = as_files([Image.new("RGB", (56, 84), (30, 60, 200))])
    settings = ("forced", 3, "real", 0.1, 0.8, 50, 1.01, 24, 8, 0, "own")
    shown = list(handlers.ask(None, files, "Which mark?", None, MONET, *settings, TAB))
    assert [value.get("problem") for value in shown] == [None] * len(shown)
    assert shown[0]["state"] == "running" and shown[-1]["state"] == "finished" and len(shown) > 2
    assert shown[-1]["name"].startswith("Monet 7B, forced K 3: ")
    (kept,) = [run for run in handlers.history.runs("tab") if not run.id.startswith("recorded")]
    trace = Trace.load(kept.path)
    assert trace.source.dtype == ("float32" if small else "bfloat16")
    assert trace.source.checkpoint == MONET and trace.source.world is None
    assert [latents.latents.shape for latents in trace.blocks] == [(3, 16)]
    assert trace.settings.temperature == 0.1 and trace.system == PUBLISHED[MONET].config.system
    assert (trace.start.grids[0][0] * 28) * (trace.start.grids[0][1] * 28) >= 256 * 28 * 28  # its image limits


def test_the_page_opens_with_the_checkpoints_own_settings(runner):
    shown = fields(runner)
    assert shown["K, latents per block"] == 10
    assert (shown["Temperature (0 is greedy)"], shown["Top p"], shown["Top k (0 is off)"]) == (0.1, 0.8, 50)
    assert (shown["Repetition penalty"], shown["Most tokens"]) == (1.01, 2048)
    assert not runner.loaded  # known before anything is loaded
    assert opening("glyph-monet") == (LatentRange(), Sampling())


@pytest.mark.slow
def test_sampling_follows_the_chosen_checkpoint_but_for_what_was_set(runner):
    handlers = Handlers(runner, History())
    former = dict(zip(SAMPLING, (0.0, 1.0, 0, 1.0, 128), strict=True))
    *values, own = handlers.sample(MONET, former, 0.0, 1.0, 0, 1.0, 300)
    assert values == [0.1, 0.8, 50, 1.01, 300] and own["max_new_tokens"] == 2048
    *values, own = handlers.sample("glyph-monet", own, *values)
    assert values[:4] == [0.0, 1.0, 0, 1.0] and values[4] == 300


@pytest.mark.slow
def test_what_is_wrong_with_a_checkpoint_is_a_sentence(runner, twin, tmp_path, monkeypatch):
    def short(*_):
        raise ValueError("Monet needs more memory.")

    monkeypatch.setattr("latent_core.checkpoints.placement.choose", short)
    handlers = Handlers(runner, History())
    with pytest.raises(Exception, match="Monet needs more memory"):
        handlers.settle(MONET, 8, {"now": "glyph-monet", "k": {}})
    files = as_files([Image.new("RGB", (56, 84))])
    settings = ("latent", 3, "real", 0.1, 0.8, 50, 1.01, 24, 8, 0, "own")
    *_, value = handlers.ask(None, files, "Which?", None, MONET, *settings, TAB)
    assert value["problem"] == "Monet needs more memory."


def test_published_names_are_spelled_as_in_their_papers():
    names = [method_label(name) for name in PUBLISHED]
    assert names == ["Monet 7B", "Monet SFT 7B stage 1", "Monet SFT 7B stage 2", "Monet SFT 7B stage 3", "LVR 7B"]
