"""Models of the page are loaded once each, and nobody whose model is loaded waits for another's."""

import threading

import pytest

from app.runner import Runner

PATIENCE = 20
"""Seconds after which a thread counts as held up; nothing here takes any time."""


class Shelf:
    """A loader: `slow` takes until it is let go, `broken` fails the first time."""

    def __init__(self) -> None:
        self.began, self.go, self.loads = threading.Event(), threading.Event(), []

    def __call__(self, name: str) -> object:
        self.loads.append(name)
        if name == "slow":
            self.began.set()
            assert self.go.wait(PATIENCE)
        if name == "broken" and self.loads.count("broken") == 1:
            raise ValueError("its files do not fit together")
        return object()


def asking(runner: Runner, name: str, found: list) -> threading.Thread:
    thread = threading.Thread(target=lambda: found.append(runner.reasoner(name)), daemon=True)
    thread.start()
    return thread


@pytest.fixture
def shelf() -> Shelf:
    return Shelf()


@pytest.fixture
def runner(shelf) -> Runner:
    return Runner(["quick", "slow", "broken"], shelf)


def test_a_loaded_model_does_not_wait_for_one_that_is_being_loaded(runner, shelf):
    quick, slow, again = runner.reasoner("quick"), [], []
    loading = asking(runner, "slow", slow)
    assert shelf.began.wait(PATIENCE)
    asked = asking(runner, "quick", again)
    asked.join(PATIENCE)
    assert not asked.is_alive() and again == [quick]
    assert loading.is_alive() and not slow and runner.loaded == ("quick",)
    shelf.go.set()
    loading.join(PATIENCE)
    assert len(slow) == 1 and runner.loaded == ("quick", "slow")


def test_who_asks_for_the_same_model_gets_the_same_one(runner, shelf):
    found: list = []
    first = asking(runner, "slow", found)
    assert shelf.began.wait(PATIENCE)
    others = [asking(runner, "slow", found) for _ in range(3)]
    assert not found
    shelf.go.set()
    for thread in (first, *others):
        thread.join(PATIENCE)
    assert len(found) == 4 and len(set(map(id, found))) == 1 and shelf.loads == ["slow"]


def test_a_load_that_fails_locks_nobody_out(runner, shelf):
    with pytest.raises(ValueError, match="do not fit together"):
        runner.reasoner("broken")
    assert runner.loaded == ()
    found: list = []
    for name in ("quick", "broken"):
        thread = asking(runner, name, found)
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert len(found) == 2 and runner.loaded == ("quick", "broken")
