"""Prints where the time of a test run went: durations.py REPORT (JUnit XML).

The slowest tests, the sum of every file that takes a second or more, and the total, in seconds by the clock; then
those that take long and are not marked `slow`, as a warning.
"""

import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

SLOWEST = 25
LONG = 6.0
"""Seconds by the clock after which a test should be marked slow: three times the two seconds of an idle core, for
other processes run tests at the same time."""


def table(report: Path) -> str:
    """The table of one run."""
    seconds, files, unmarked = {}, Counter(), []
    for case in ElementTree.parse(report).iter("testcase"):
        file = case.get("classname") or case.get("name", "")  # a module that skips itself has its path as name
        name, took = f"{file}::{case.get('name')}", float(case.get("time", 0))
        seconds[name] = took
        files[file] += took
        marks = next((mark.get("value", "") for mark in case.iter("property") if mark.get("name") == "marks"), "")
        if took > LONG and not marks:
            unmarked.append(name)
    slowest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:SLOWEST]
    lines = [f"The slowest {len(slowest)} of {len(seconds)} tests, s:"]
    lines += [f"{seconds[name]:8.1f}  {name}" for name in slowest]
    lines += ["", "Files that take 1 s or more, s:"]
    lines += [f"{took:8.1f}  {file}" for file, took in files.most_common() if took >= 1]
    lines += ["", f"{sum(files.values()):8.1f}  all tests, one after the other"]
    if unmarked:
        lines += [
            "",
            f"Took more than {LONG:g} s and is not marked slow:",
            *(f"          {name}" for name in unmarked),
        ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(Path(sys.argv[1])))
