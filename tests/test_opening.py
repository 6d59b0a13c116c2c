"""Traces that anybody may have written: what they may hold, that nothing else comes out but a sentence, and that what
they are answered with has its limit."""

import json
import random
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from app import traces
from app.artifacts import Artifacts
from app.budget import ANSWER, UPDATE, size
from app.history import RECORDED, History
from app.inspect_payload import SHOWN_STEPS, view_of
from app.limits import OWN
from app.payload import payload
from app.trace_upload import open_trace
from latent_core.events import AttentionSummary, FinishEvent, LatentEvent, StartEvent, TokenEvent
from latent_core.settings import MAX_LATENTS, MAX_RUN_LATENTS, MAX_TOKENS, Settings
from latent_core.trace import MAX_STEPS, Source, Trace

RELATE = RECORDED / "relate_glyph-monet.safetensors"
WORD = TokenEvent(position=0, token_id=0, text=" word", logprob=-0.1, p_open=0.0, seconds=0.0)
LATENT = LatentEvent(position=0, block=0, index=0, seconds=0.0)
WRONG = (
    None,
    [],
    {},
    True,
    -1,
    2**62,
    10**30,
    10**400,
    float("nan"),
    "",
    "x" * 5000,
    "\ud800",
    [[1, 2]] * 5,
    {"a": 1},
)


@pytest.fixture
def opened(tmp_path):
    """Opens a trace, or the bytes of one, as if they had been uploaded."""

    def open_it(trace: Trace | bytes) -> Trace:
        path = tmp_path / "run.safetensors"
        path.write_bytes(trace) if isinstance(trace, bytes) else trace.save(path)
        return open_trace(str(path))

    return open_it


def run(steps, *, images=1, side=8, grid=(2, 2), levels=(0, 1), layers=(), width=2) -> Trace:
    """A trace of these steps on images of noise."""
    noise = np.random.default_rng(0)
    start = StartEvent(
        prompt_tokens=9,
        images=tuple(torch.from_numpy(noise.integers(0, 256, (side, side, 3), np.uint8)) for _ in range(images)),
        grids=(grid,) * images,
        levels=levels,
        image_states=torch.randn(len(levels), images * grid[0] * grid[1], width),
        layers=layers,
        seconds=0.0,
    )
    finish = FinishEvent(
        reason="stop", tokens=1, latents=0, blocks=0, text_seconds=1.0, latent_seconds=0.0, max_p_open=0.0
    )
    source = Source(checkpoint="glyph-monet", method="monet", versions={})
    return Trace(
        question="Which?",
        system="",
        settings=Settings(),
        source=source,
        start=start,
        steps=tuple(steps),
        finish=finish,
    )


def test_the_longest_run_of_ones_own_page_opens(opened):
    """All tokens and latents that settings allow, on four images of 8,192 patches each."""
    latents = [replace(LATENT, block=n // 128, index=n % 128) for n in range(MAX_RUN_LATENTS)]
    trace = opened(run([*[WORD] * MAX_TOKENS, *latents], images=OWN.images, grid=(64, 128), levels=tuple(range(29))))
    assert len(trace.steps) == MAX_STEPS and len(trace.blocks) == 64


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"steps": [replace(WORD, text=" a" * 501)]}, "1,002 letters in one step; 1,000 can be shown"),
        ({"steps": [replace(WORD, text=" a" * 500)] * 33}, "16,500 words in its response; 16,384"),
        ({"steps": [replace(WORD, text="x" * 1000)] * 501}, "501,000 letters in its response"),
        ({"steps": [replace(LATENT, index=n) for n in range(MAX_LATENTS + 1)]}, "577 latents in one block; 576"),
        ({"steps": [replace(LATENT, block=n // 512) for n in range(MAX_RUN_LATENTS + 1)]}, "8,193 latents; 8,192"),
        ({"steps": [replace(LATENT, grid=(1, 10**6))]}, "1,000,000 rows or columns"),
        ({"images": 17}, "17 images; 16"),
        ({"grid": (1000, 1000)}, "1,000,000 image patches"),
        ({"side": 5100}, "26,010,000 pixels in its images"),
        ({"levels": tuple(range(129))}, "129 levels"),
        ({"layers": tuple(range(129))}, "129 layers"),
    ],
)
def test_what_a_trace_may_hold_is_bounded(opened, change, words):
    with pytest.raises(ValueError, match=words):
        opened(run(**{"steps": [WORD], **change}))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"question": "x" * 4001}, "4,001 letters in its question"),
        ({"system": "x" * 20_001}, "20,001 letters in its system prompt"),
        ({"source": Source(checkpoint="x" * 201, method="monet", versions={})}, "201 letters in a name"),
        (
            {"source": Source(checkpoint="x", method="nothing", versions={})},
            "the method 'nothing', which does not exist",
        ),
    ],
)
def test_what_a_trace_may_say_is_bounded(opened, change, words):
    with pytest.raises(ValueError, match=words):
        opened(replace(run([WORD]), **change))


def large() -> Trace:
    """As much as fits: 16,384 words and latents, 32 levels, 128 layers, 4,096 patches, images of noise."""
    word, latent = torch.randn(2), torch.randn(2)
    attention = AttentionSummary(
        image=torch.rand(128, 1, 4096).half(), shares=torch.rand(128, 1, 5), entropy=torch.rand(128, 1)
    )
    latents = [
        replace(LATENT, block=n // 512, index=n % 512, fed=latent, hidden=latent) for n in range(MAX_RUN_LATENTS)
    ]
    words = [replace(WORD, text=" wörter" * 2, hidden=word) for _ in range(MAX_TOKENS - 4)]
    looking = [replace(WORD, hidden=word, attention=attention)] * 4
    return run(
        [*looking, *latents, *words],
        images=16,
        side=200,
        grid=(16, 16),
        levels=tuple(range(32)),
        layers=tuple(range(128)),
    )


def test_what_a_large_trace_is_answered_with_has_its_limit(opened, tmp_path):
    """Ask's value at the end and on the way, Inspect's, Compare's and a region's; what is left out is said."""
    trace = opened(large())
    view = view_of(trace)
    sent = payload(view, 1, label="")
    assert size(sent) < ANSWER and len(sent["images"]) == 16
    assert "of its 16,384 words and latents lack some" in sent["maps"]["left"] and len(sent["maps"]["levels"]) == 1
    glows = [replace(item, glow=torch.rand(4096)) for item in view.items[:MAX_RUN_LATENTS]]
    assert size(payload(replace(view, items=tuple(glows), finish=None), 1, label="")) < UPDATE
    path = str(tmp_path / "run.safetensors")
    value = traces.figures(path, Artifacts(("glyph-monet",)), run="", name="", own=True)
    assert size(value) < ANSWER and value["cut"] == MAX_STEPS - SHOWN_STEPS
    assert "2 matrices of blocks" in value["left"]
    history = History(tmp_path)
    for number in (1, 2):
        history.add("tab", number, "x" * 1000, tmp_path / "run.safetensors")
    assert size(traces.compared(path, path, Artifacts(()))) < ANSWER
    assert size(history.choices("tab")) < 1000
    found = traces.region(path, image=0, box=(0, 0, 0.5, 0.5), level=0, centred=True, layer=0, head=1)
    assert size(found) < 20_000


def mutations(count: int):
    """The bytes of a good trace whose JSON part has a wrong value, or none, in some place."""
    with safe_open(RELATE, "pt") as file:
        content = json.loads(file.metadata()["trace"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    rng = random.Random(0)

    def places(value, at=()):
        named = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, part in named:
            yield (*at, name)
            yield from places(part, (*at, name))

    every = [at for at in places(content) if at[0] != "steps" or len(at) < 2 or at[1] in (0, 5, 12)]
    for _ in range(count):
        wrong, (*route, last) = deepcopy(content), rng.choice(every)
        part = wrong
        for name in route:
            part = part[name]
        if rng.random() < 0.1:
            del part[last]
        else:
            part[last] = rng.choice(WRONG)
        yield (*route, last), save(tensors, {"trace": json.dumps(wrong)})


@pytest.mark.parametrize("number", [1e30, float("inf"), float("nan")])
def test_numbers_that_have_no_length_are_refused(opened, number):
    with pytest.raises(ValueError, match="not finite, or too large"):
        opened(run([replace(WORD, hidden=torch.tensor([0.0, number]))]))
    with pytest.raises(ValueError, match=r"took 0\.0 to 1e\+300 seconds"):
        opened(run([replace(WORD, seconds=1e300)]))


def test_a_wrong_value_anywhere_is_a_sentence_or_harmless(opened):
    refused = 0
    for at, data in mutations(250):
        try:
            trace = opened(data)
        except ValueError as problem:
            assert len(str(problem)) < 1000 and str(problem).endswith("."), f"{at}: {problem}"
            refused += 1
        else:
            json.dumps(payload(view_of(trace), 1, label=""), allow_nan=False)
    assert 150 < refused < 250
