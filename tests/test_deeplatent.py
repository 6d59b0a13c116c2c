"""DeepLatent's decoding: two forwards a block, the LatentFormer against a plain one, modulation, grids, places."""

import numpy as np
import pytest
import torch

from latent_core.decoding.batch import prompt_feeds
from latent_core.decoding.engine import decode
from latent_core.decoding.layout import ForcedSequence, lay_out
from latent_core.decoding.sequence import Block, Tokens
from latent_core.decoding.unroll import splice, unroll
from latent_core.events import LatentEvent, TokenEvent
from latent_core.methods.deeplatent import SIDE, DeepLatent, Modulation, centres, fit, image_tokens, squarest
from latent_core.model.backbones import wrap
from latent_core.model.qwen2_5_vl import Qwen2_5_VL
from latent_core.settings import Settings
from tests.tiny import CLOSE, EOS, OPEN, of_sequence, scripted, tiny_method, tiny_model, tiny_prompt

BACKBONE = wrap(tiny_model())


def method(**options) -> DeepLatent:
    built = tiny_method("deeplatent", options=options)
    generator = torch.Generator().manual_seed(1)
    for parameter in built.parameters():  # zero-initialised layers would hide half of the method
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return built


def run(built, script, settings=None, prompt=None):
    prompts = [tiny_prompt(grids=[(4, 6), (4, 4)]) if prompt is None else prompt]
    return list(decode(BACKBONE, built, prompts, [settings or Settings(latents=36)], sampler=scripted(script)))


@pytest.mark.parametrize("latents", [1, 4, 36])
def test_a_block_takes_two_forwards_however_large(monkeypatch, latents):
    sizes = []
    forward = Qwen2_5_VL.forward
    monkeypatch.setattr(
        Qwen2_5_VL, "forward", lambda self, x, *a, **k: sizes.append(x.shape[1]) or forward(self, x, *a, **k)
    )
    run(method(grid="fixed"), [1, OPEN, 3, OPEN], Settings(latents=latents))
    prompt = len(tiny_prompt(grids=[(4, 6), (4, 4)]).input_ids)
    block = [1 + 3, latents + 1]  # the opening token with three control vectors, the latents with the closing token
    assert sizes == [prompt, 1, *block, 1, *block]


@pytest.mark.parametrize("rule", ["causal", "latents_only", "sealed"])
@pytest.mark.parametrize("blocks", [0, 1, 2, 5])
def test_cached_decoding_equals_one_spliced_forward(blocks, rule):
    built = method()
    built.config = type(built.config)(**{**_fields(built.config), "rule": rule})
    script = [1, *[OPEN, 2] * blocks]
    events = run(built, script)
    latents = of_sequence(events, 0, LatentEvent)
    found = [[e for e in latents if e.block == number] for number in range(blocks)]
    segments = [Tokens((1,))]
    for block in found:
        rows, columns = block[0].grid
        assert rows * columns == len(block) and all(e.grid == (rows, columns) for e in block)
        segments += [Block(len(block), grid=(rows, columns)), Tokens((2,))]
    row = ForcedSequence(tiny_prompt(grids=[(4, 6), (4, 4)]), (*segments, Tokens((EOS,))))
    with torch.no_grad():
        spliced = splice(BACKBONE, built, [row], [[torch.stack([e.fed for e in block]) for block in found]])
    states, _ = spliced.learned()
    sampled = [e for e in of_sequence(events, 0, TokenEvent) if not e.forced]
    torch.testing.assert_close(torch.stack([e.hidden for e in sampled]), states, atol=2e-5, rtol=0)


def _fields(config):
    return {name: getattr(config, name) for name in type(config).__dataclass_fields__}


def test_training_takes_a_forward_more_than_there_are_blocks():
    rows = [ForcedSequence(tiny_prompt(), (Tokens((1,)), *(Block(6, grid=(2, 3)), Tokens((3,))) * n)) for n in (1, 3)]
    with torch.no_grad():
        assert unroll(BACKBONE, method(), rows).forwards == 1 + 3


def test_at_most_five_blocks():
    events = run(method(), [OPEN, 1] * 5 + [2])
    assert events[-1].blocks == 5
    asked = []

    def sampler(row, logits):
        asked.append(bool(torch.isinf(logits[OPEN])))
        return OPEN if len(asked) < 6 else EOS

    list(decode(BACKBONE, method(), [tiny_prompt()], [Settings(latents=4, max_blocks=64)], sampler=sampler))
    assert asked == [False] * 5 + [True]


def test_latents_stand_where_an_images_tokens_would():
    built, prompt = method(), tiny_prompt()
    row = ForcedSequence(prompt, (Tokens((1,)), Block(6, grid=(2, 3)), Tokens((4,))))
    layout = lay_out(BACKBONE, built, [row], ["sealed"])
    places = layout.positions[:, 0, len(prompt.input_ids) :].T.tolist()
    s = places[0][0] + 1 + 1 + 3  # text, opening token, three control vectors
    grid = [[s, s + i, s + j] for i in range(2) for j in range(3)]
    assert places[5:11] == grid and places[11:17] == grid  # sealed copies stand in the same places
    assert places[17] == [s + 3] * 3 and places[18] == [s + 4] * 3  # s + max(rows, columns)
    straight = lay_out(BACKBONE, method(positions="text"), [row], ["causal"])
    assert straight.positions[0, 0, len(prompt.input_ids) + 5 :].tolist() == [*range(s, s + 8)]


def test_inference_is_deterministic_and_training_draws_noise():
    built, first = method(), None
    for _ in range(2):
        fed = torch.stack([e.fed for e in of_sequence(run(built, [OPEN]), 0, LatentEvent)])
        assert first is None or torch.equal(first, fed)
        first = fed
    rows = [ForcedSequence(tiny_prompt(), (Block(4, grid=(2, 2)), Tokens((1,))))]
    with torch.no_grad():
        noisy = [unroll(BACKBONE, built.train(), rows).latents[0][0] for _ in range(2)]
        quiet = method(noise=0.0, noise_floor=0.0).train()
        still = [unroll(BACKBONE, quiet, rows).latents[0][0] for _ in range(2)]
    assert not torch.equal(*noisy) and torch.equal(*still)


def test_modulation_is_what_the_page_says():
    torch.manual_seed(3)
    built = Modulation(8, 0.1, 0.02)
    x, state = 3 * torch.randn(5, 8), torch.randn(8)
    rms = x.numpy().__pow__(2).mean() ** 0.5
    at_start = built(state, x)
    torch.testing.assert_close(at_start.mean(x), x)
    np.testing.assert_allclose(at_start.sigma.detach(), np.full(8, 0.1 * rms), rtol=1e-5)
    torch.nn.init.normal_(built.mlp[-1].weight)
    first, last = built.mlp[0], built.mlp[2]
    inner = first.weight.detach().numpy() @ state.numpy() + first.bias.detach().numpy()
    raw = last.weight.detach().numpy() @ (inner / (1 + np.exp(-inner)))
    scale, shift, spread = np.split(raw, 3)
    moved = built(state, x)
    np.testing.assert_allclose(moved.mean(x).detach(), (1 + scale) * x.numpy() + shift, rtol=1e-4, atol=1e-4)
    offset = np.log(np.expm1(0.08 * rms))
    np.testing.assert_allclose(moved.sigma.detach(), 0.02 * rms + np.log1p(np.exp(spread + offset)), rtol=1e-4)
    assert moved.sigma.min() >= 0.02 * rms
    assert built.to(torch.bfloat16)(state.bfloat16(), x.bfloat16()).mean(x).dtype == torch.float32


def test_densities_and_divergence_are_those_of_torch():
    torch.manual_seed(4)
    built, other = Modulation(8, 0.1, 0.02).double(), Modulation(8, 0.3, 0.02).double()
    for module in (built, other):
        torch.nn.init.normal_(module.mlp[-1].weight, std=0.3)
    x, state = torch.randn(5, 8), torch.randn(8).double()
    first, second = built(state, x), other(state, x)
    noise = torch.randn(5, 8)
    value = first.at(x, noise)
    normals = [torch.distributions.Normal(m.mean(x).double(), m.sigma.double().expand(5, 8)) for m in (first, second)]
    for modulated, normal in zip((first, second), normals, strict=True):
        torch.testing.assert_close(
            modulated.log_density(x, value).double(), normal.log_prob(value.double()), atol=1e-5, rtol=1e-5
        )
    kl = torch.distributions.kl_divergence(*normals)
    torch.testing.assert_close(first.divergence(second, x).double(), kl, atol=1e-5, rtol=1e-5)
    assert first.divergence(first, x).abs().max() == 0
    torch.testing.assert_close((value - first.mean(x)) / first.sigma, noise, atol=1e-4, rtol=1e-4)


def test_autocast_reaches_no_density():
    torch.manual_seed(5)
    built = Modulation(8, 0.1, 0.02)
    torch.nn.init.normal_(built.mlp[-1].weight)
    x, state = torch.randn(5, 8), torch.randn(8).bfloat16()
    plain = built(state.float(), x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = built(state, x)
        value = cast.at(x, torch.ones(5, 8))
        densities = cast.log_density(x, value), cast.divergence(plain, x)
    for name in ("scale", "shift", "sigma"):
        assert getattr(cast, name).dtype == torch.float32 and torch.equal(getattr(cast, name), getattr(plain, name))
    assert all(found.dtype == torch.float32 for found in densities) and densities[1].abs().max() == 0
    torch.testing.assert_close(densities[0], plain.log_density(x, value))


def test_the_latent_former_equals_a_plain_one():
    """Attention, rotations and norms written out with loops over heads and positions."""
    built = method(heads=2, blocks=1)
    (block,) = built.former
    torch.manual_seed(5)
    grid, features = (2, 3), torch.randn(7, 32)
    places = 16 * torch.rand(7, 2)
    queries = torch.randn(6, 32)

    def weights(module):
        return {name: value.detach().double().numpy() for name, value in module.named_parameters()}

    def norm(x, module):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * module.weight.detach().double().numpy()

    def turned(vector, at):  # a head of 16: four rates by row, four by column; dimension d pairs with d + 8
        out = vector.copy()
        for d in range(8):
            angle = at[d // 4] * 100.0 ** (-(d % 4) / 4)
            a, b = vector[d], vector[d + 8]
            out[d], out[d + 8] = a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)
        return out

    def attend(module, x, at, y, there):
        w = weights(module)
        q, k, v = (z @ w[f"{n}.weight"].T + w[f"{n}.bias"] for z, n in ((x, "query"), (y, "key"), (y, "value")))
        out = np.zeros_like(q)
        for h in range(2):
            part = slice(16 * h, 16 * h + 16)
            for i in range(len(x)):
                scores = [turned(q[i, part], at[i]) @ turned(k[j, part], there[j]) / 4 for j in range(len(y))]
                weight = np.exp(scores - np.max(scores))
                out[i, part] = (weight / weight.sum()) @ v[:, part]
        return out @ w["out.weight"].T + w["out.bias"]

    at = [((i + 0.5) * 8, (j + 0.5) * 16 / 3) for i in range(2) for j in range(3)]
    np.testing.assert_allclose(centres(grid), at, rtol=1e-6)
    x = queries.double().numpy()
    own = norm(x, block.norm_self)
    x = x + attend(block.own, own, at, own, at)
    image = norm(features.double().numpy(), block.norm_image)
    x = x + attend(block.cross, norm(x, block.norm_cross), at, image, places.double().numpy())
    found = built.form(queries, grid, features, places)
    np.testing.assert_allclose(found.detach(), x, atol=1e-4)
    order = torch.randperm(7)
    torch.testing.assert_close(built.form(queries, grid, features[order], places[order]), found, atol=1e-5, rtol=0)
    assert not torch.allclose(built.form(queries, grid, features[order], places), found, atol=1e-3)


def test_every_image_has_a_frame_of_its_own():
    (feed,) = prompt_feeds(BACKBONE, [tiny_prompt(grids=[(4, 6), (4, 4)])])
    features, places = image_tokens(feed)
    torch.testing.assert_close(places, torch.cat([centres((2, 3)), centres((2, 2))]))
    assert features.shape == (10, 32) and places.max() < SIDE


def test_a_prompt_without_images_still_thinks():
    events = run(method(), [OPEN, 1], Settings(latents=4), tiny_prompt(grids=[]))
    assert all(e.fed.isfinite().all() for e in of_sequence(events, 0, LatentEvent)) and events[-1].latents > 0


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": 0},
        {"blocks": 2},
        {"modulate_latents": False},
        {"modulate_image": False},
        {"feed_forward": 48},
        {"antialias": True},
        {"generation": "autoregressive", "grid": "fixed"},
    ],
)
def test_every_option_decodes_and_moves_what_it_has(options):
    built = method(**options).train()
    events = run(built, [OPEN, 1], Settings(latents=6))
    assert 1 <= events[-1].latents <= 6
    rows = [
        ForcedSequence(
            tiny_prompt(), (Tokens((1,)), Block(6, grid=None if "generation" in options else (2, 3)), Tokens((4, EOS)))
        )
    ]
    states, labels = unroll(BACKBONE, built, rows).learned()
    built.zero_grad()
    torch.nn.functional.cross_entropy(BACKBONE.logits(states), labels).backward()
    still = {name for name, p in built.named_parameters() if p.grad is None or not p.grad.abs().sum()}
    assert still == {"scale.weight", "scale.bias"} & {name for name, _ in built.named_parameters()}  # its own loss


def test_grids():
    assert [squarest(k) for k in (1, 2, 3, 8, 9, 36, 37)] == [(1, 1), (1, 2), (1, 3), (2, 4), (3, 3), (6, 6), (6, 6)]
    assert fit((6, 6), 36) == (6, 6) and fit((16, 16), 64) == (8, 8) and fit((1, 16), 4) == (1, 4)
    for rows in range(1, 17):
        for columns in range(1, 17):
            for most in (1, 2, 7, 36, 256):
                r, c = fit((rows, columns), most)
                assert 1 <= r <= rows and 1 <= c <= columns and r * c <= most


def test_the_scale_head_says_the_grid_and_k_caps_it():
    built = method()
    built.scale.weight.data.zero_()
    built.scale.bias.data.zero_()
    built.scale.bias.data[[2, SIDE + 4]] = 1  # class c means c + 1
    fed = of_sequence(run(built, [OPEN, CLOSE]), 0, LatentEvent)
    assert fed[0].grid == (3, 5) and len(fed) == 15
    assert of_sequence(run(built, [OPEN], Settings(latents=8)), 0, LatentEvent)[0].grid == fit((3, 5), 8)
    assert not of_sequence(run(built, [OPEN], Settings(mode="markers")), 0, LatentEvent)


def test_options_that_cannot_be():
    for options, words in (
        ({"width": 0}, "width is 0"),
        ({"heads": 3}, "heads is 3"),
        ({"noise": 0.01}, "noise_floor"),
    ):
        with pytest.raises(ValueError, match=words):
            tiny_method("deeplatent", options=options)
