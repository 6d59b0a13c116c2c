"""The two tables of docs/engine.md against the engine: forwards, slot types, positions, and what states are for."""

import re
from pathlib import Path

import pytest
import torch

from latent_core.decoding.batch import SequenceBatch
from latent_core.decoding.engine import decode
from latent_core.decoding.layout import ForcedSequence
from latent_core.decoding.sequence import Block, Tokens
from latent_core.decoding.unroll import unroll
from latent_core.events import LatentEvent, TokenEvent
from latent_core.model import slot_types as slot_types
from latent_core.model.backbones import wrap
from latent_core.model.slots import axes
from latent_core.settings import Settings
from tests.tiny import CLOSE, EOS, OPEN, scripted, tiny_method, tiny_model, tiny_prompt

PAGE = (Path(__file__).parent.parent / "docs" / "engine.md").read_text(encoding="utf-8")
BACKBONE, PROMPT = wrap(tiny_model()), tiny_prompt()
METHODS = {
    "Monet": ("monet", {}, 2, None),
    "DeepLatent": ("deeplatent", {"options": {"grid": "fixed"}}, 4, (2, 2)),
}
"""Title of a table → method, its configuration, K and the grid."""
RULES = ("sealed", "causal")


def table(title: str, rule: str) -> list[dict[str, str]]:
    """The rows of the table below a title; those of copies under `sealed` alone."""
    (part,) = re.findall(rf"^### A {title} block.*?\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    head, _, *rows = [
        [cell.strip(" `") for cell in line[1:-1].split("|")] for line in part.splitlines() if "|" in line
    ]
    rows = [dict(zip(head, cells, strict=True)) for cells in rows]
    return [row for row in rows if rule == "sealed" or row["type"] != "SEALED"]


@pytest.fixture
def forwards(monkeypatch):
    """Of every forward of one row: its feed, the positions (3, N) of its slots, and their states (N, D)."""
    found, forward = [], SequenceBatch.feed

    def feed(self, feeds, **options):
        (one,), (start,) = feeds, self.positions
        states, kept = forward(self, feeds, **options)
        found.append((one, axes(one.slots.place(start)[0]), states[0].clone()))
        return states, kept

    monkeypatch.setattr(SequenceBatch, "feed", feed)
    return found


def slots(forwards) -> list[tuple[int, str, list[int], str, torch.Tensor, torch.Tensor | None]]:
    """Forward, type, position behind the prompt, what is fed, state, and vector of every slot behind the prompt."""
    first = int(forwards[0][1][:, : len(PROMPT.input_ids)].max()) + 1
    names = {value: name for name, value in vars(slot_types).items() if name.isupper() and name != "CLASSES"}
    tokens = {OPEN: "opening token", CLOSE: "closing token"}
    found = []
    for number, (feed, positions, states) in enumerate(forwards, start=1):
        vectors = [] if feed.embeds is None else list(feed.embeds)
        if feed.is_latent:
            fed = [f"latent {feed.index + n + 1}" for n in range(feed.latents)]
            fed += [f"copy of latent {n + 1}" for n in range(feed.num_sealed)]
        else:
            fed = ["prompt"] * len(vectors)
        fed += [tokens.get(token, "token") for token in feed.then]
        controls = [] if feed.tail is None else list(feed.tail)
        fed += [f"control vector {n + 1}" for n in range(len(controls))]
        vectors += [*[None] * len(feed.then), *controls]
        places = (positions - first).T.tolist()
        types = [names[slot_types.slot_class(kind)] for kind in feed.slots.types]
        found += zip([number] * feed.size, types, places, fed, states, vectors, strict=True)
    return found[len(PROMPT.input_ids) :]


def place(text: str) -> list[int]:
    numbers = [int(number) for number in text.split()]
    return numbers * 3 if len(numbers) == 1 else numbers


def compare(rows, found, column: str) -> None:
    assert [(int(row[column]), row["type"], place(row["position"]), row["fed"]) for row in rows] == [
        slot[:4] for slot in found
    ]


@pytest.mark.parametrize("title", METHODS)
def test_slots_are_counted(title):
    rows = table(title, "sealed")
    assert [int(row["slot"]) for row in rows] == list(range(len(rows))) and len(rows) > 7


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("title", METHODS)
def test_decoding_is_what_the_table_says(forwards, monkeypatch, title, rule):
    name, config, latents, _ = METHODS[title]
    method, rows, starts = tiny_method(name, rule=rule, **config), table(title, rule), []
    block = method.block
    monkeypatch.setattr(method, "block", lambda context: [starts.append(context.hidden), block(context)][1])
    events = list(decode(BACKBONE, method, [PROMPT], [Settings(latents=latents)], sampler=scripted([1, OPEN, 2])))
    found = slots(forwards)
    compare(rows, found, "decoding")
    chosen = iter([e for e in events if isinstance(e, TokenEvent) and not e.forced][1:])  # the prompt chose the first
    fed = {f"is latent {n}": e.fed for n, e in enumerate([e for e in events if isinstance(e, LatentEvent)], 1)}
    for row, slot in zip(rows, found, strict=True):
        use, state = row["its state"], slot[4]
        match use.split():
            case ["chooses", *_, "token"]:
                event = next(chosen)
                torch.testing.assert_close(event.hidden, state, atol=0, rtol=0)
                assert use != "chooses the opening token" or event.kind == "open"
            case ["is", "latent", _]:
                torch.testing.assert_close(fed[use], state, atol=0, rtol=0)
            case ["steers", number]:
                torch.testing.assert_close(starts[0][int(number) - 1], state, atol=0, rtol=0)
            case other:
                assert not other
    assert next(chosen, None) is None
    assert len(starts[0]) == sum(row["its state"].startswith(("steers", "is latent 1")) for row in rows)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("title", METHODS)
def test_training_is_what_the_table_says(forwards, title, rule):
    name, config, latents, grid = METHODS[title]
    row = ForcedSequence(PROMPT, (Tokens((1,)), Block(latents, grid=grid), Tokens((2,))))
    with torch.no_grad():
        unroll(BACKBONE, tiny_method(name, rule=rule, **config), [row])
    compare(table(title, rule), slots(forwards), "training")


@torch.no_grad()
def test_copies_are_the_latents(forwards):
    for title, (name, config, latents, _) in METHODS.items():
        forwards.clear()
        method = tiny_method(name, rule="sealed", **config)
        list(decode(BACKBONE, method, [PROMPT], [Settings(latents=latents)], sampler=scripted([1, OPEN, EOS])))
        vectors = {slot[3]: slot[5] for slot in slots(forwards)}
        assert sum(fed.startswith("copy") for fed in vectors) == latents, title
        for fed, vector in vectors.items():
            if fed.startswith("copy of "):
                assert torch.equal(vector, vectors[fed.removeprefix("copy of ")])


def test_an_overwritten_start_takes_the_opening_tokens_row_away(forwards):
    method, rows = tiny_method("monet", rule="sealed", convention="start_overwritten"), table("Monet", "sealed")
    list(decode(BACKBONE, method, [PROMPT], [Settings(latents=2)], sampler=scripted([1, OPEN, 2])))
    found = slots(forwards)
    moved = [(int(row["decoding"]) - 1, row["type"], place(row["position"])[0] - 1) for row in rows[2:]]
    assert [(slot[0], slot[1], slot[2][0]) for slot in found[1:]] == moved
