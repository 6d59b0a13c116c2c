"""A GPU that is lent for a call: the runner's work in a forked process, everything pickled on the way."""

import inspect
import multiprocessing
import pickle
import signal
from collections.abc import Callable, Iterator
from multiprocessing.reduction import ForkingPickler
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest
import torch
from PIL import Image

from app.ask import answer_stream, new_scene
from app.components import as_files
from app.runner import Ask, Runner
from app.zerogpu import LONGEST, SHORTEST, lent, seconds_for
from latent_core import load
from latent_core.events import FinishEvent, LatentEvent, StartEvent
from latent_core.trace import Trace
from tests.scripted import ScriptedReasoner

pytestmark = pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")


class Platform:
    """Lends as ZeroGPU does: a fork per call, arguments and items through pipes, a stop asked for between two items.

    It refuses with a gr.Error, and tells with one that the process was killed.
    """

    def __init__(self) -> None:
        self.asked: list[int] = []
        """Seconds of every call."""
        self.refusal: str | None = None
        self.killed = False
        """Whether the process is killed after its second item."""

    def GPU(self, *, duration: Callable[..., int]) -> Callable[[Callable], Callable]:
        def decorate(task: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
            def call(*arguments: Any) -> Iterator[Any]:
                self.asked.append(duration(*arguments))
                if self.refusal:
                    raise gr.Error(self.refusal)
                yield from forked(task, ForkingPickler.dumps(arguments), killed=self.killed)

            return call

        return decorate


def forked(task: Callable[..., Iterator[Any]], arguments: bytes, *, killed: bool) -> Iterator[Any]:
    context = multiprocessing.get_context("fork")
    items, sender = context.Pipe(duplex=False)
    stop = context.Event()
    process = context.Process(target=work, args=(task, bytes(arguments), sender, stop), daemon=True)
    process.start()
    sender.close()
    given = 0
    try:
        while (item := items.recv()) is not None:
            yield item[0]
            given += 1
            if killed and given == 2:
                process.kill()
    except EOFError:
        raise gr.Error("GPU task aborted") from None
    finally:
        stop.set()
        process.join(30)
        assert process.exitcode == (-signal.SIGKILL if killed else 0), "the work went on after it was stopped"


def work(task: Callable[..., Iterator[Any]], arguments: bytes, sender: Any, stop: Any) -> None:
    torch.set_num_threads(1)
    try:
        for item in task(*pickle.loads(arguments)):
            if stop.is_set():
                return
            sender.send((item,))
        sender.send(None)
    except BrokenPipeError:  # nobody listens any more
        return


@pytest.fixture
def platform() -> Platform:
    return Platform()


@pytest.fixture
def scene():
    images, question, identity = new_scene("find", 7)
    return SimpleNamespace(files=as_files(images), images=images, question=question, identity=identity)


def borrowing(platform: Platform, reasoner: Any) -> Runner:
    runner = Runner([reasoner.name], lambda name: reasoner, lend=platform.GPU, borrowers=[reasoner.name])
    runner.reasoner(reasoner.name)
    return runner


def test_a_real_run_is_the_same_in_another_process(platform, scene):
    reasoner = load("glyph-monet")
    there, here = borrowing(platform, reasoner), Runner(["glyph-monet"], lambda name: reasoner)
    ask = Ask(images=scene.images, question=scene.question, checkpoint="glyph-monet", settings={"latents": 3})
    runs = [runner.trace(ask, list(runner.stream("tab", ask))) for runner in (there, here)]
    assert runs[0].text == runs[1].text and runs[0].answer == "dot"
    assert torch.equal(runs[0].blocks[0].latents, runs[1].blocks[0].latents)
    assert torch.equal(runs[0].attention.image, runs[1].attention.image)
    assert runs[0].start.image_states.device.type == "cpu" and len(platform.asked) == 1
    one, other = (runner.reread(runs[1]) for runner in (there, here))
    assert (one.rollout == other.rollout).all() and one.words == other.words
    assert len(platform.asked) == 2


def test_only_borrowers_borrow(platform, scene):
    reasoner = ScriptedReasoner()
    runner = Runner(["scripted"], lambda name: reasoner, lend=platform.GPU)
    ask = Ask(images=scene.images, question=scene.question, checkpoint="scripted", settings={})
    events = list(runner.stream("tab", ask))
    assert isinstance(events[0], StartEvent) and isinstance(events[-1], FinishEvent) and platform.asked == []


def test_the_page_sees_no_difference(platform, scene):
    runner = borrowing(platform, ScriptedReasoner())
    *_, (value, path) = answer_stream(
        runner, "tab", scene.files, scene.question, "scripted", scene.identity, latents=3
    )
    assert value["state"] == "finished" and value["finish"]["answer"] == "ring" and runner.running == 0
    assert sum(isinstance(step, LatentEvent) for step in Trace.load(path).steps) == 3


@pytest.mark.parametrize("stop", ["button", "closed tab"])
def test_a_stopped_run_ends_in_the_other_process(platform, scene, stop):
    runner = borrowing(platform, ScriptedReasoner(delay=0.01))
    stream = answer_stream(runner, "tab", scene.files, scene.question, "scripted", None, speed="slow")
    next(stream), next(stream)
    if stop == "button":
        runner.stop("tab")
        assert list(stream)[-1][0]["finish"]["reason"] == "cancelled"
    else:
        stream.close()
    assert runner.running == 0


def test_what_is_wrong_there_is_told_here(platform, scene, monkeypatch):
    reasoner = ScriptedReasoner()
    runner = borrowing(platform, reasoner)

    def problem(question: str = scene.question, **settings: Any) -> str:
        return list(answer_stream(runner, "tab", scene.files, question, "scripted", None, **settings))[-1][0][
            "problem"
        ]

    assert problem("") == "The question is empty; write one."
    assert problem(latents=-1).startswith("K is -1") and len(platform.asked) == 1  # no GPU is asked for that

    def broken(*_: Any, **__: Any) -> Iterator[Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")
        yield

    monkeypatch.setattr(reasoner, "stream", broken)
    assert "(CUDA out of memory)" in problem()
    platform.refusal = 'Your quota is used up. <a href="https://example.org">More</a>'
    assert problem() == "No GPU was lent: Your quota is used up. More"


def test_a_process_that_is_killed_in_the_middle_is_told_and_the_next_run_works(platform, scene):
    runner = borrowing(platform, ScriptedReasoner(delay=0.05))

    def ask() -> dict:
        return list(answer_stream(runner, "tab", scene.files, scene.question, "scripted", None))[-1][0]

    platform.killed = True
    value = ask()
    assert value["state"] == "failed" and runner.running == 0
    assert value["problem"] == "The GPU was taken away before the run ended: GPU task aborted"
    platform.killed = False
    assert ask()["finish"]["answer"] == "ring"


def test_time_is_asked_for_by_tokens_latents_and_pixels(platform):
    little = seconds_for(tokens=128, latents=80, pixels=400_000)
    assert SHORTEST <= little < seconds_for(tokens=600, latents=80, pixels=400_000)
    assert little < seconds_for(tokens=128, latents=80, pixels=6_000_000)
    assert seconds_for(tokens=8192, latents=0, pixels=0) < seconds_for(tokens=8192, latents=1000, pixels=0)
    assert seconds_for(tokens=1, latents=0, pixels=0) == SHORTEST
    assert seconds_for(tokens=8192, latents=8192, pixels=10**8) == LONGEST


def test_a_run_asks_for_what_its_settings_need(platform):
    runner = borrowing(platform, ScriptedReasoner())

    def asked(side: int = 100, **settings: Any) -> int:
        image = Image.new("RGB", (side, side))
        list(runner.stream("tab", Ask(images=[image], question="?", checkpoint="scripted", settings=settings)))
        return platform.asked[-1]

    long = {"max_new_tokens": 4000, "max_blocks": 16}
    assert asked() < asked(max_new_tokens=600) < asked(**long, mode="text") < asked(**long, latents=16)
    assert asked(3000) > asked()


def test_lent_work_is_a_generator_function_for_the_platform():
    kinds = []

    def lend(*, duration: Callable[..., int]) -> Callable[[Callable], Callable]:
        def decorate(task: Callable) -> Callable:
            kinds.append(inspect.isgeneratorfunction(task))
            return task

        return decorate

    def count(to: int) -> Iterator[int]:
        yield from range(to)

    assert list(lent(count, lend, lambda to: to)(3)) == [0, 1, 2] and kinds == [True]
