"""On a device of its own: nothing meets what lies on the host, and little crosses over. See elsewhere.py.

In a process of its own, for PyTorch cannot forget a device.
"""

import multiprocessing
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils import backend_registration

from latent_core import glyphs, load
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.decoding import interventions
from latent_core.evaluation.replay import lens_by_layer, replay
from latent_core.reasoner import Reasoner
from latent_core.trace import Trace

CHECKPOINTS = ("glyph-monet", "glyph-lvr", "glyph-valr", "glyph-deeplatent", "glyph-text")
SAMPLED = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.1}
STAGES = (
    "glyph-latent",
    "glyph-monet-stage1",
    "glyph-monet-stage2",
    "glyph-monet",
    "glyph-lvr",
    "glyph-valr",
    "glyph-deeplatent-stage1",
    "glyph-deeplatent",
    "glyph-monet-rl",
    "glyph-lvr-rl",
    "glyph-deeplatent-rl",
)


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="this PyTorch has no devices written in Python",
    ),
]


@pytest.fixture(scope="module")
def apart():
    """Calls a function of this module in the process that knows the device."""
    with multiprocessing.get_context("spawn").Pool(1, torch.set_num_threads, (1,)) as pool:
        yield lambda work, *arguments: pool.apply(work, arguments)


def jobs(reasoner: Reasoner, known: Trace) -> dict[str, Callable[[], object]]:
    """What is done on both devices; each gives something that can be compared."""
    images, question = known_question()
    other = glyphs.sample("relate", 3, "test")

    def ask(**settings: object) -> str:
        return reasoner.run(images, question, max_new_tokens=32, **settings).text

    return {
        "own rule": lambda: ask(attention=True),
        "causal": lambda: ask(rule="causal"),
        "sampled": lambda: ask(**SAMPLED),
        "zero": lambda: ask(intervene=interventions.zero()),
        "noise": lambda: ask(intervene=interventions.noise(0)),
        "permute": lambda: ask(intervene=interventions.permute(known.blocks, 0)) if known.blocks else "",
        "donor": lambda: ask(intervene=interventions.donor(known.blocks)) if known.blocks else "",
        "batch": lambda: [
            trace.text
            for trace in reasoner.run_batch([images, other.images], [question, other.question], max_new_tokens=32)
        ],
        "lens": lambda: [
            [reading.id for reading in layer]
            for layers in lens_by_layer(reasoner, replay(reasoner, known), [0, 5])
            for layer in layers
        ],
    }


def known_question() -> tuple[list, str]:
    example = glyphs.sample("find", 7, "test")
    return example.images, example.question


def both(name: str) -> dict[str, tuple[object, object]]:
    """What each job gives on the host and on the device."""
    from tests.elsewhere import device, moved

    reasoner = load(name)
    known = reasoner.run(*known_question())
    todo = jobs(reasoner, known)
    here = {job: work() for job, work in todo.items()}
    moved(reasoner.backbone)
    moved(reasoner.method)
    with device():
        return {job: (here[job], work()) for job, work in todo.items()}


def mistakes() -> list[str]:
    """What is said of tensors on two devices, and what is counted where the host waits."""
    from tests.elsewhere import Elsewhere, device

    there, here, said = Elsewhere(torch.ones(3)), torch.ones(3), []
    with torch.no_grad(), device() as counts:
        for work in (lambda: there + here, lambda: torch.cat([there, here]), lambda: there[:2].add_(here[:2])):
            try:
                work()
            except AssertionError as problem:
                said.append(str(problem))
        assert (there + 1 + torch.tensor(2.0)).tolist() == [4.0, 4.0, 4.0]  # numbers may come from the host
        there[there > 0]
    return [*said, f"{counts['to host']} {counts['waits']}"]


def test_the_device_that_is_not_there_finds_mistakes(apart):
    *said, counted = apart(mistakes)
    assert len(said) == 3 and all("on the host and on the device" in problem for problem in said)
    assert counted == "1 1"


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_answers_are_those_of_the_host(apart, name):
    for job, (here, there) in apart(both, name).items():
        assert here == there, job


def crossings(base: dict[str, object], more: dict[str, object]) -> Counter:
    """What crosses over for one word or latent more."""
    from tests.elsewhere import device, moved

    reasoner = load("glyph-monet")
    reasoner.backbone.eos_ids = frozenset()
    moved(reasoner.backbone)
    counted = []
    for settings in (base, base | more):
        with device() as counts:
            reasoner.run(*known_question(), **settings)
        counted.append(counts)
    return counted[1] - counted[0]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mode": "text"}, (2, 1)),  # its id and its kind; what was chosen, with its state
        ({"mode": "text", **SAMPLED}, (3, 1)),  # and the random number
        ({"mode": "text", "attention": True}, (2, 3)),
        ({"mode": "forced", "max_blocks": 1}, (1, 1)),  # a latent stays there: its kind; its vector and state
        ({"mode": "forced", "max_blocks": 1, "attention": True}, (1, 3)),
    ],
)
def test_few_copies_are_made_for_a_step(apart, settings, expected):
    step = "latents" if settings["mode"] == "forced" else "max_new_tokens"
    found = apart(crossings, {**settings, "max_new_tokens": 9, step: 8}, {step: 9})
    assert (found["to device"], found["to host"]) == expected and not found["waits"]


def losses(name: str, overrides: list[str], runs: Path) -> tuple[float, float]:
    """A stage's loss of one batch, on the host and on the device, to which tensors are moved as transformers does."""
    from tests.elsewhere import Elsewhere, device, moved
    from trainers.data.glyphs import GlyphsDataset
    from trainers.loop.launch import build_stage
    from trainers.recipe import load_recipe

    recipe, _ = load_recipe(name, ["per_device_train_batch_size=4", "val_size=2", *overrides])
    stage = build_stage(recipe, runs).eval()
    data = GlyphsDataset(recipe.mixture, 4, batch=4, seed=0)
    batch = stage.collate([data[index] for index in range(4)])

    def there(value: object) -> object:
        if isinstance(value, torch.Tensor):
            return Elsewhere(value)
        if isinstance(value, dict):
            return {key: there(part) for key, part in value.items()}
        return type(value)(map(there, value)) if isinstance(value, (list, tuple)) else value

    with torch.no_grad():
        here = stage(**batch)["loss"].item()
        moved(stage)
        with device():
            return here, stage(**there(batch))["loss"].item()


@pytest.mark.parametrize("name", STAGES)
def test_losses_are_those_of_the_host(apart, name, tmp_path):
    """From nothing, but for what needs a teacher or goes on with an embedded checkpoint."""
    start = (
        [f"{field}={EMBEDDED / name}" for field in ("init", "teacher")]
        if name == "glyph-deeplatent"
        else ["init=null"]
    )
    here, there = apart(losses, name, [] if name.endswith("-rl") else start, tmp_path)
    assert here == pytest.approx(there, rel=1e-5) and here != 0
