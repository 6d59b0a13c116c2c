"""Work that a visitor starts runs in processes that end at their limits, whatever is in it."""

import dataclasses
import multiprocessing
import os
import threading
import time

import pytest

from app import workers
from app.limits import PUBLIC
from app.traces import difference
from app.workers import Overdue, Workers

SHORT = dataclasses.replace(PUBLIC, worker_seconds=1, worker_bytes=300_000_000)


@pytest.fixture
def two() -> Workers:
    return Workers("Counting", count=2, waiting=1)


def test_work_is_done_in_another_process_that_is_gone_afterwards(two):
    process = two.run(SHORT, os.getpid)
    assert process != os.getpid() and two.run(SHORT, os.getpid) != process
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)
    assert two.run(SHORT, int, "12", base=8) == 10
    assert not multiprocessing.active_children()


def test_the_process_from_which_they_are_forked_holds_what_they_need_and_no_more(two):
    """What it imports everybody waits for at the start; what it does not, each piece of work would import anew."""
    loaded = two.run(SHORT, eval, "set(__import__('sys').modules)")  # a function of this module would import it there
    assert {"app.traces", "app.pictures", "torch", "PIL.Image"} <= loaded
    assert not loaded & {"gradio", "transformers", "umap", "app.runner"}


def test_what_goes_wrong_is_told(two):
    with pytest.raises(ValueError, match="invalid literal for int"):
        two.run(SHORT, int, "x")
    with pytest.raises(RuntimeError, match="(?s)Counting failed in its process.*TypeError"):
        two.run(SHORT, int, [])


@pytest.mark.parametrize(
    "work",
    [
        (pow, 7, 10**9),  # never comes back from C, where no signal handler and no thread would be heard
        (bytearray, 10**10),
        (os.abort,),
    ],
    ids=["minutes", "gigabytes", "a crash"],
)
def test_work_ends_at_its_limits(two, work):
    with pytest.raises(Overdue, match="Counting takes more than 1 seconds or 0.3 GB here, so it was stopped"):
        two.run(SHORT, *work)
    assert two.run(SHORT, abs, -1) == 1


def test_work_that_only_waits_ends_too(two, monkeypatch):
    monkeypatch.setattr(workers, "WALL", 0.2)
    with pytest.raises(Overdue):
        two.run(SHORT, time.sleep, 1000)


def test_two_are_done_at_once_one_waits_and_the_next_is_refused(two, tmp_path):
    """The two and the one who waits read pipes that nobody writes to, until somebody does."""
    pipes = [str(tmp_path / name) for name in "abc"]
    for pipe in pipes:
        os.mkfifo(pipe)
    done: list[bytes] = []
    threads = [threading.Thread(target=lambda pipe=pipe: done.append(two.run(PUBLIC, read, pipe))) for pipe in pipes]
    for thread in threads[:2]:
        thread.start()
    writers = [os.open(pipe, os.O_WRONLY) for pipe in pipes[:2]]  # returns once its reader is there
    threads[2].start()
    while not two._line:
        time.sleep(0.01)
    with pytest.raises(ValueError, match="Counting has to wait: this server is busy with others"):
        two.run(PUBLIC, abs, 1)
    with pytest.raises(OSError):
        os.open(pipes[2], os.O_WRONLY | os.O_NONBLOCK)  # nobody reads it yet
    for writer in writers:
        os.write(writer, b"done")
        os.close(writer)
    with open(pipes[2], "wb") as last:
        last.write(b"done")
    for thread in threads:
        thread.join()
    assert done == [b"done"] * 3 and two.run(PUBLIC, abs, -2) == 2


def read(path: str) -> bytes:
    with open(path, "rb") as file:
        return file.read()


def test_where_nothing_can_be_forked_work_is_done_here(two, monkeypatch):
    monkeypatch.setattr(workers, "FORKS", False)
    assert two.run(SHORT, os.getpid) == os.getpid()


def test_the_difference_of_long_texts_has_an_end():
    """The attack: a quadratic comparison of words that are all alike, or all different."""
    same, other = " a" * 60_000, " b a" * 30_000
    sides = difference(same, other)
    assert ["".join(part["text"] for part in side) for side in sides] == [same, other]
    words = ["".join(f" {first}{n * 7919 % 60_000}" for n in range(60_000)) for first in "xy"]
    assert [len(side) for side in difference(*words)] == [1, 1]


def test_the_difference_is_word_by_word():
    first, second = difference(" It is a ring. \n", "It is one ring")
    assert [(part["text"], part["same"]) for part in first] == [
        (" It", False),
        (" is", True),
        (" a ring. \n", False),
    ]
    assert [(part["text"], part["same"]) for part in second] == [("It", False), (" is", True), (" one ring", False)]
