"""What the page is sent of a recorded run has not moved: maps, figures, regions, against values written down once.

`python -m tests.test_page_values` writes them down anew.
"""

import base64
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from app.history import RECORDED
from app.inspect_payload import inspection, view_of
from app.payload import payload
from app.traces import pairs, region
from latent_core.trace import Trace

WRITTEN = Path(__file__).parent / "fixtures" / "page_values.json"
RUN = RECORDED / "find_glyph-monet.safetensors"
OTHER = RECORDED / "relate_glyph-monet.safetensors"
SMALL = 60_000
"""Bytes: a budget in which maps are thinned out."""
CODED = {"raw": "<i2", "centred": "<i2", "items": "<i2", "patches": "<i2", "maps": "u1", "baseline": "u1"}
"""Type of the numbers in the strings of base64, by their names."""


def values() -> dict[str, Any]:
    """Of one run, and of its latents beside another's."""
    trace = Trace.load(RUN)
    kept = {"bank": None, "depicter": None, "measured": {}, "replayed": None}
    figures = inspection(trace, run="1", name="one", label="Monet", own=True, **kept)
    where = {"image": 0, "box": (0.5, 0.5, 1, 1), "level": 0, "layer": 4}
    return {
        "view": {key: part for key, part in figures.pop("view").items() if key != "images"},
        "small": payload(view_of(trace), 1, label="Monet", budget=SMALL)["maps"],
        "figures": figures,
        "regions": [region(str(RUN), **where, centred=head > 0, head=head) for head in (0, 2)],
        "pairs": pairs(trace, Trace.load(OTHER)),
    }


def compare(here: Any, written: Any, place: str = "") -> None:
    """The same, but that another processor may round a number to the step beside it."""
    name = place.rpartition(".")[2]
    if isinstance(written, dict):
        assert here.keys() == written.keys(), place
        for key in written:
            compare(here[key], written[key], f"{place}.{key}")
    elif isinstance(written, list):
        assert len(here) == len(written), place
        for one, other in zip(here, written, strict=True):
            compare(one, other, place)
    elif isinstance(written, float):
        assert math.isclose(here, written, rel_tol=1e-6, abs_tol=1.1e-3 if ".regions" in place else 1.1e-4), place
    elif isinstance(written, str) and name in CODED:
        one, other = (np.frombuffer(base64.b64decode(text), CODED[name]).astype(int) for text in (here, written))
        assert one.shape == other.shape and np.abs(one - other).max() <= 1, place
    else:
        assert here == written, place


def test_what_the_page_is_sent_has_not_moved():
    here = json.loads(json.dumps(values()))
    compare(here, json.loads(WRITTEN.read_text(encoding="utf-8")))


if __name__ == "__main__":
    WRITTEN.write_text(json.dumps(values(), separators=(",", ":")) + "\n", encoding="utf-8")
