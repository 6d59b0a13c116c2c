"""Exits with a sentence unless tests in tests/browser ran and none was skipped: browser_ran.py REPORT (JUnit XML)."""

import sys
from xml.etree import ElementTree

# A whole module that skips itself has its dotted path as name and no class.
cases = [
    case
    for case in ElementTree.parse(sys.argv[1]).iter("testcase")
    if f"{case.get('classname')}.{case.get('name')}".lstrip(".").startswith("tests.browser.")
]
skipped = [f"{case.get('name')}: {skip.get('message')}" for case in cases for skip in case.iter("skipped")]
if not cases:
    sys.exit("No browser test ran: there is none in tests/browser.")
if skipped:
    sys.exit("Browser tests were skipped, here they must run:\n  " + "\n  ".join(skipped))
