"""Every test runs offline and on one thread: tiny models lose most of their time to thread hand-over.

Several processes may run tests at the same time (pytest-xdist): each keeps visitors' files in a folder of its own, and
a test marked `alone` runs while no other does.
"""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROWSER = "tests/browser/"
VISITORS = tempfile.TemporaryDirectory(prefix="inscape-tests-", ignore_cleanup_errors=True)
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_TEMP_DIR"] = VISITORS.name
os.environ.setdefault("INSCAPE_TEST_TURNS", VISITORS.name)  # the first process sets it for all
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the processes that tests start

from app import folder  # noqa: E402

folder.make(os.environ["GRADIO_TEMP_DIR"])  # some tests write there before any server has claimed it

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.turns import turn  # noqa: E402

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Whatever a test before has set: with another number of threads sums differ in their last bits."""
    torch.set_num_threads(1)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Writes each test's marks into the report that .ci/durations.py reads, and puts long files first.

    Several processes take whole files, so one that is begun last should be short.
    """
    long: Counter[Path] = Counter()
    for item in items:
        marks = sorted({mark.name for mark in item.iter_markers()} & {"browser", "slow"})
        item.user_properties.append(("marks", " ".join(marks)))
        long[item.path] += len(marks)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: -long[item.path])


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, without which all runs in this process
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives a process whole files, for their fixtures' sake, and one process all that need a browser and a server."""
    from xdist.scheduler import LoadFileScheduling

    scheduler = LoadFileScheduling(config, log)
    scheduler._split_scope = lambda test: BROWSER if test.startswith(BROWSER) else test.partition("::")[0]
    return scheduler


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Fixtures included, for they may train a model."""
    with turn(Path(os.environ["INSCAPE_TEST_TURNS"]), alone=item.get_closest_marker("alone") is not None):
        return (yield)


def pytest_unconfigure() -> None:
    VISITORS.cleanup()  # a process of pytest-xdist ends without doing so
