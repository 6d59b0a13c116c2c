"""The suite itself: tests that run alone do, and the table of durations names what is slow and not marked so."""

import subprocess
import sys
import threading
from pathlib import Path

from tests.turns import turn

ROOT = Path(__file__).resolve().parents[1]
REPORT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_quick" time="0.5"><properties><property name="marks" value=""/>
</properties></testcase>
<testcase classname="tests.test_a" name="test_long" time="7.25"><properties><property name="marks" value=""/>
</properties></testcase>
<testcase classname="tests.browser.test_b" name="test_page" time="9"><properties>
<property name="marks" value="browser"/></properties></testcase>
<testcase classname="" name="tests.test_skipped" time="0"><skipped message="no"/></testcase>
</testsuite></testsuites>"""


def test_durations_are_told_and_what_should_be_marked_slow(tmp_path):
    (tmp_path / "report.xml").write_text(REPORT)
    command = [sys.executable, ".ci/durations.py", str(tmp_path / "report.xml")]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert [line.split()[-1] for line in said.splitlines()[1:4]] == [
        "tests.browser.test_b::test_page",
        "tests.test_a::test_long",
        "tests.test_a::test_quick",
    ]
    assert "     7.8  tests.test_a\n" in said and "    16.8  all tests" in said
    before, after = said.split("is not marked slow:")
    assert after.split() == ["tests.test_a::test_long"] and "test_skipped" in before


def test_what_runs_alone_waits_for_the_others_and_keeps_them_waiting(tmp_path):
    """Three turns in threads, each with files of its own as a process has: shared, then alone, then shared again."""
    order, ends = [], {name: threading.Event() for name in ("first", "alone", "last")}

    def take(name: str) -> None:
        with turn(tmp_path, alone=name == "alone"):
            order.append(f"{name} begins")
            assert ends[name].wait(30)
            order.append(f"{name} ends")

    threads = [threading.Thread(target=take, args=(name,)) for name in ends]
    for thread in threads:
        thread.start()
        thread.join(0.2)  # long enough to take its turn, were it free
    assert order == ["first begins"]
    for event, thread in zip(ends.values(), threads, strict=True):
        event.set()
        thread.join(30)
    assert order == [f"{name} {what}" for name in ends for what in ("begins", "ends")]
