"""LVR against its released code's golden numbers: decoding, exits, heads, boxes, and the losses of stage 1."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2_5_VLForConditionalGeneration

from latent_core.config import MethodConfig
from latent_core.decoding.engine import decode
from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Tokens
from latent_core.events import LatentEvent, TokenEvent
from latent_core.methods.lvr import Lvr, distance
from latent_core.model.backbone import Backbone
from latent_core.model.backbones import wrap
from latent_core.model.processor import Prompt
from latent_core.settings import Settings
from tests.tiny import of_sequence
from trainers.sft.lvr import LvrStage, box_slots, mode_switch, reconstruction

FOLDER = Path(__file__).parent / "fixtures" / "lvr_seed0"
CASE = json.loads((FOLDER / "case.json").read_text())
TENSORS = load_file(FOLDER / "case.safetensors")
TOKENS, SECTIONS = CASE["tokens"], CASE["sections"]
TOLERANCE = {"atol": 1e-4, "rtol": 0}
WIDTH = 64


@pytest.fixture(scope="module")
def model() -> Qwen2_5_VLForConditionalGeneration:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(FOLDER / "model", dtype=torch.float32)


@pytest.fixture(scope="module")
def backbone(model) -> Backbone:
    backbone = wrap(model)
    backbone.eos_ids = frozenset()  # as in the reference's runs
    return backbone


def lvr(**options) -> Lvr:
    names = dict(zip(("open_token", "close_token", "pad_token"), ("lvr_start", "lvr_end", "lvr"), strict=True))
    return Lvr(MethodConfig(method="lvr", options=options, **names), TOKENS.__getitem__)


def golden(section: str, key: str) -> torch.Tensor:
    return TENSORS[f"{section}.{key}"]


def prompt(ids: torch.Tensor, image: str) -> Prompt:
    pixels, grid = (TENSORS[f"images.{image}.{key}"] for key in ("pixel_values", "grid_thw"))
    return Prompt(input_ids=ids, pixel_values=pixels, grid_thw=grid, images=())


def opens_and_then_greedy(forced: dict[int, int] | None = None):
    """The prompts of the fixture end in the opening token: here it is the first that is said; then the likeliest.

    `forced`: ids by their place among those sampled, the opening token at 0.
    """
    counts: dict[int, int] = {}

    def sampler(row: int, logits: torch.Tensor) -> int:
        at = counts.get(row, 0)
        counts[row] = at + 1
        return TOKENS["lvr_start"] if at == 0 else (forced or {}).get(at, int(logits.argmax()))

    return sampler


def run(backbone, method, section, prompts, latents, sampler=None, room=40):
    settings = [Settings(latents=k, max_new_tokens=room) for k in latents]
    return list(decode(backbone, method, prompts, settings, sampler=sampler or opens_and_then_greedy()))


def check(events, row, section):
    """Latents, and the words after the block with their logits, as far as the reference went."""
    fed = torch.stack([event.fed for event in of_sequence(events, row, LatentEvent)])
    torch.testing.assert_close(fed, golden(section, "latents"), **TOLERANCE)
    words = [e for e in of_sequence(events, row, TokenEvent) if e.kind == "text"]
    steps = golden(section, "latent_steps").tolist()
    wanted = golden(section, "sequence")[-len(golden(section, "step_logits")) :].tolist()
    after = [n for n in range(len(wanted)) if n > 0 and n not in steps[:-1] and n >= steps[0]]
    assert [word.token_id for word in words[: len(after)]] == [wanted[n] for n in after]
    return words, after


@pytest.mark.parametrize(("section", "latents"), [("decode_steps4", 4), ("decode_steps8", 8)])
def test_fixed_steps(backbone, section, latents):
    ids = golden(section, "input_ids")
    events = run(backbone, lvr(), section, [prompt(ids[:-1], "main")], [latents])
    words, after = check(events, 0, section)
    for word, step in zip(words, after, strict=False):
        logits = backbone.logits(word.hidden)
        torch.testing.assert_close(logits, golden(section, "step_logits")[step], **TOLERANCE)
    assert [e.kind for e in of_sequence(events, 0, TokenEvent)][:2] == ["open", "text"]  # nobody closes


def test_two_blocks(backbone):
    section = "decode_two_blocks"
    at = SECTIONS[section]["forced"]["generated_index"]
    # of the ids that the reference samples, those inside the first block are not sampled here
    sampler = opens_and_then_greedy({at - 4 + 1: TOKENS["lvr_start"]})
    ids = golden(section, "input_ids")
    events = run(backbone, lvr(), section, [prompt(ids[:-1], "main")], [4], sampler)
    latents = of_sequence(events, 0, LatentEvent)
    assert [(e.block, e.index) for e in latents] == [(b, t) for b in range(2) for t in range(4)]
    torch.testing.assert_close(torch.stack([e.fed for e in latents]), golden(section, "latents"), **TOLERANCE)


def test_rows_of_a_batch_with_quotas_of_their_own(backbone):
    ids = golden("decode_batch", "input_ids")
    prompts = [prompt(ids[0, :-1], "main"), prompt(ids[1, :-1], "second")]
    events = run(backbone, lvr(), "decode_batch", prompts, [6, 3])
    for row in range(2):
        check(events, row, f"decode_batch.row{row}")


@pytest.mark.parametrize("kind", ["mse", "mae", "cosine", "cap"])
def test_latent_end(backbone, kind):
    section = f"decode_latent_end_{kind}"
    facts = SECTIONS[section]
    method = lvr(exit="latent_end", width=WIDTH, distance=facts["criterion"], threshold=facts["threshold"])
    method.lvr_latent_end_emb.data.copy_(golden(section, "lvr_latent_end_emb"))
    ids = golden(section, "input_ids")
    events = run(backbone, method.eval(), section, [prompt(ids[:-1], "main")], [facts["cap"]])
    assert len(of_sequence(events, 0, LatentEvent)) == facts["latents_fed"]
    check(events, 0, section)


def test_mode_switch_ends_where_the_closing_token_would_be_said(backbone):
    """Silently: ids inside the block are not told, and the closing token is fed once. The cap holds, too."""
    ids = golden("decode_steps8", "input_ids")

    def run_with(ends_at):
        asked = []

        def sampler(row, logits):
            asked.append(logits)
            if len(asked) == 1:
                return TOKENS["lvr_start"]
            return TOKENS["lvr_end"] if len(asked) - 2 == ends_at else int(logits[:256].argmax())

        method = lvr(exit="mode_switch")
        settings = [Settings(latents=8, max_new_tokens=16)]
        return list(decode(backbone, method, [prompt(ids[:-1], "main")], settings, sampler=sampler)), asked

    events, asked = run_with(3)
    latents, words = of_sequence(events, 0, LatentEvent), of_sequence(events, 0, TokenEvent)
    assert len(latents) == 3 and [w.kind for w in words][:3] == ["open", "close", "text"]
    assert [w.kind for w in words].count("close") == 1 and events[-1].tokens == 16
    torch.testing.assert_close(
        torch.stack([e.fed for e in latents]), golden("decode_steps8", "latents")[:3], **TOLERANCE
    )
    assert torch.isinf(asked[0][TOKENS["lvr_end"]]) and torch.isfinite(asked[1][TOKENS["lvr_end"]])
    events, _ = run_with(None)
    assert len(of_sequence(events, 0, LatentEvent)) == 8
    assert [w.kind for w in of_sequence(events, 0, TokenEvent)][:2] == ["open", "text"]


def test_a_sampled_closing_token_is_told_as_one(backbone):
    ids = golden("decode_steps4", "input_ids")
    sampler = opens_and_then_greedy({1: TOKENS["lvr_end"]})
    events = run(backbone, lvr(), "decode_steps4", [prompt(ids[:-1], "main")], [4], sampler, room=12)
    words = of_sequence(events, 0, TokenEvent)
    assert [w.kind for w in words[:3]] == ["open", "close", "text"] and not words[1].forced
    assert words[1].token_id == TOKENS["lvr_end"] and words[1].logprob < 0


@pytest.mark.parametrize(("kind", "head"), [("simple", "mlp"), ("glu", "glu")])
def test_heads(kind, head):
    method = lvr(head=head, width=WIDTH, inner=SECTIONS["heads"]["intermediate_size"])
    stored = {
        name.removeprefix(f"heads.{kind}."): tensor
        for name, tensor in TENSORS.items()
        if name.startswith(f"heads.{kind}.lvr_head")
    }
    method.load_state_dict(stored, strict=True)
    torch.testing.assert_close(method.latents(TENSORS["heads.input"]), TENSORS[f"heads.{kind}.output"], **TOLERANCE)


def numpy_slots(box, rows, columns):
    """Every cell that the box overlaps, by asking each one."""
    x0, y0, x1, y1 = box
    found = [
        r * columns + c
        for r in range(rows)
        for c in range(columns)
        if (c + 1) / columns > x0 and c / columns < x1 and (r + 1) / rows > y0 and r / rows < y1
    ]
    return np.array(found)


@pytest.mark.parametrize("case", CASE["boxes"], ids=str)
def test_boxes(case):
    (_, height, width), box = case["grid_thw"], case["box"]
    grid = height // 2, width // 2
    x0, y0, x1, y1 = box
    if not all(0 <= edge <= 1 for edge in box):
        with pytest.raises(ValueError, match="sample 7: the box .* leaves the image"):
            box_slots(box, grid, "sample 7")
    elif not case["tokens"] or 1 in (x0, y0):  # the reference takes a line on the border for the tokens beside it
        with pytest.raises(ValueError, match="sample 7: the box .* holds no image token"):
            box_slots(box, grid, "sample 7")
    else:
        assert box_slots(box, grid, "sample 7") == case["tokens"]


def test_boxes_against_overlap():
    draw = np.random.default_rng(0)
    for _ in range(200):
        rows, columns = draw.integers(1, 20, 2)
        (x0, x1), (y0, y1) = np.sort(draw.random((2, 2)), axis=1)
        if x0 < x1 and y0 < y1:
            wanted = numpy_slots((x0, y0, x1, y1), rows, columns)
            np.testing.assert_array_equal(box_slots((x0, y0, x1, y1), (rows, columns), "x"), wanted)


def training_rows(section: str) -> tuple[list[ForcedSequence], list[list[list[int]]]]:
    facts = SECTIONS[section]
    batched = isinstance(facts["layout"][0], list)
    layouts, ids = facts["layout"] if batched else [facts["layout"]], golden(section, "input_ids")
    rows, slots = [], []
    for number, layout in enumerate(layouts):
        spans = {part["name"]: (part["start"], part["end"]) for part in layout}
        own = ids[number] if batched else ids
        start = own.tolist().index(TOKENS["lvr_start"])
        places = [n for n, token in enumerate(own.tolist()) if token == TOKENS["lvr"]]
        end = own.tolist().index(TOKENS["lvr_end"])
        last = max(stop for _, stop in spans.values())
        # the response is learned from the opening token on; what stands before it in the turn is prompt
        row_prompt = prompt(own[:start], facts["images"][number])
        parts = (Block(len(places), learn_close=True), Tokens(tuple(own[end + 1 : last].tolist())))
        rows.append(ForcedSequence(row_prompt, parts))
        box = facts["boxes"][number] if batched else facts["box"]
        grid = TENSORS[f"images.{facts['images'][number]}.grid_thw"][0].tolist()
        slots.append([box_slots(box, (grid[1] // 2, grid[2] // 2), section)])
    return rows, slots


class Stage(LvrStage):
    """The stage around the fixture's model, without a recipe's processor."""

    def __init__(self, backbone, method) -> None:
        torch.nn.Module.__init__(self)
        self.backbone, self.method = backbone, method


@pytest.mark.parametrize("section", ["sft", "sft_batch"])
def test_losses_of_stage_one(backbone, section):
    rows, slots = training_rows(section)
    stage, expected = Stage(backbone, lvr()), SECTIONS[section]["expected"]
    unrolled = stage.run(rows, slots)
    predicted, wanted = stage.pairs(unrolled)
    if section == "sft":
        torch.testing.assert_close(predicted, golden("sft", "predictions"), **TOLERANCE)
        torch.testing.assert_close(wanted, golden("sft", "targets"), **TOLERANCE)
        torch.testing.assert_close(backbone.logits(unrolled.states[0]), golden("sft", "logits"), **TOLERANCE)
        assert torch.equal(unrolled.layout.positions[:, 0], golden("sft", "position_ids"))
    for kind in ("mse", "mae", "cosine"):
        loss = reconstruction(predicted, wanted, kind).item()
        assert loss == pytest.approx(expected[f"loss_lvr_{kind}"], abs=1e-4), kind
    states, targets = unrolled.learned()
    words = torch.nn.functional.cross_entropy(backbone.logits(states), targets)
    assert words.item() == pytest.approx(expected["loss_ce"], abs=1e-4)
    total = words + 0.1 * reconstruction(predicted, wanted, "mse")
    assert total.item() == pytest.approx(expected["loss_total_mse"], abs=1e-4)


def test_gradients_of_stage_one(model, backbone):
    rows, slots = training_rows("sft")
    stage = Stage(backbone, lvr())
    model.zero_grad()
    model.model.visual.requires_grad_(False)
    unrolled = stage.run(rows, slots)
    states, targets = unrolled.learned()
    words = torch.nn.functional.cross_entropy(backbone.logits(states), targets)
    (words + 0.1 * reconstruction(*stage.pairs(unrolled), "mse")).backward()
    parameters = dict(model.named_parameters())
    for name, tensor in TENSORS.items():
        if name.startswith("sft.grad.total."):
            found = parameters[name.removeprefix("sft.grad.total.")].grad
            assert (found - tensor).norm() <= 1e-3 * tensor.norm(), name
    model.zero_grad()


def test_mode_switch_loss_and_its_targets(backbone):
    rows, slots = training_rows("sft_batch")
    stage = Stage(backbone, lvr(exit="mode_switch"))
    unrolled = stage.run(rows, slots)
    logits, ends = stage.switches(unrolled)
    counts = [len(row[0]) for row in slots]
    wanted = [[False] * n + [True] for n in counts]  # opening token and slots; the last slot is followed by the end
    assert ends.tolist() == sum(wanted, [])
    probability = 1 / (1 + np.exp(-logits.detach().double().numpy()))
    entropy = -np.log(np.where(ends.numpy(), probability, 1 - probability)).mean()
    assert mode_switch(logits, ends).item() == pytest.approx(entropy, rel=1e-5)


def test_distances():
    a, b = torch.randn(5, 8), torch.randn(5, 8)
    x, y = a.numpy(), b.numpy()
    np.testing.assert_allclose(distance(a, b, "mse"), ((x - y) ** 2).mean(1), rtol=1e-5)
    np.testing.assert_allclose(distance(a, b, "mae"), abs(x - y).mean(1), rtol=1e-5)
    cosine = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(distance(a, b, "cosine"), 1 - cosine, atol=1e-6)
