"""A method that nobody has heard of, added as latent_core/methods/README.md says: it decodes, unrolls and loads."""

from collections.abc import Generator
from dataclasses import dataclass

import pytest
import torch

from latent_core import checkpoints, load
from latent_core.backbones import wrap
from latent_core.drive import Block, Tokens
from latent_core.engine import decode
from latent_core.events import LatentEvent
from latent_core.feed import Context, Feed
from latent_core.layout import Row
from latent_core.methods import METHODS, LatentMethod
from latent_core.records import from_json
from latent_core.settings import Settings
from latent_core.unroll import unroll
from tests.tiny import EOS, OPEN, of_row, scripted, tiny_method, tiny_model, tiny_prompt


@dataclass(frozen=True, kw_only=True)
class FadingOptions:
    keep: float = 0.5


class Fading(LatentMethod):
    """Feeds a running mean of states, scaled by a learned number and moved by a learned vector."""

    name = "fading"
    has_options = True

    def __init__(self, config, token_id) -> None:
        super().__init__(config, token_id)
        self.options = from_json(FadingOptions, config.options, "options")
        self.scale = torch.nn.Parameter(torch.tensor(0.7))
        self.steer = torch.nn.Parameter(torch.linspace(-1, 1, 32))

    def block(self, context: Context) -> Generator[Feed, torch.Tensor, None]:
        mean = context.hidden
        for _ in range(context.num_latents):
            hidden = yield Feed(self.scale * mean + self.steer)
            mean = self.options.keep * mean + (1 - self.options.keep) * hidden


@pytest.fixture
def method(monkeypatch):
    monkeypatch.setitem(METHODS, "fading", Fading)
    return tiny_method("fading", options={"keep": 0.25})


@pytest.mark.parametrize("rule", ["everything", "latents_only", "sealed"])
def test_decoding_and_unrolling_agree(monkeypatch, rule):
    monkeypatch.setitem(METHODS, "fading", Fading)
    backbone, prompts = wrap(tiny_model()), [tiny_prompt(0), tiny_prompt(1, text=9)]
    method = tiny_method("fading", rule=rule)
    script = [1, OPEN, 3, OPEN, 4]
    settings = [Settings(latents=3), Settings(latents=2)]
    together = list(decode(backbone, method, prompts, settings, sampler=scripted(script, script)))
    for row, (prompt, setting) in enumerate(zip(prompts, settings, strict=True)):
        k = setting.latents
        alone = list(decode(backbone, method, [prompt], [setting], sampler=scripted(script)))
        rows = [Row(prompt, (Tokens((1,)), Block(k), Tokens((3,)), Block(k), Tokens((4, EOS))))]
        with torch.no_grad():
            unrolled = unroll(backbone, method, rows)
        fed = torch.stack([event.fed for event in of_row(alone, 0, LatentEvent)])
        torch.testing.assert_close(torch.cat(unrolled.latents[0]), fed, atol=1e-5, rtol=0)
        other = torch.stack([event.fed for event in of_row(together, row, LatentEvent)])
        torch.testing.assert_close(other, fed, atol=1e-5, rtol=0)


def test_gradients_reach_its_parameters(method):
    backbone = wrap(tiny_model())
    rows = [Row(tiny_prompt(), (Tokens((1,)), Block(3), Tokens((4, EOS))))]
    states, labels = unroll(backbone, method, rows).learned()
    torch.nn.functional.cross_entropy(backbone.logits(states), labels).backward()
    assert method.scale.grad.abs() > 0 and method.steer.grad.abs().sum() > 0


def test_its_checkpoint_is_saved_and_loaded(method, tmp_path):
    source = load("glyph-monet")
    config = type(source.config)(
        method="fading",
        open_token=source.config.open_token,
        close_token=source.config.close_token,
        options={"keep": 0.25},
    )
    method.scale.data.fill_(0.9)
    folder = tmp_path / "fading"
    checkpoints.save(folder, model=source.backbone.model, processor=source.processor, config=config, method=method)
    back = load(folder)
    assert back.method.name == "fading" and back.method.options.keep == 0.25 and back.method.scale == 0.9
