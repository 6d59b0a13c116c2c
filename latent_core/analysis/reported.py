"""Values that papers report about latents: shown beside what is measured here, never as pass or fail.

Only values whose source is named; what is passed on without one is left out.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reported:
    """A published value."""

    quantity: str
    """The name under which the same is measured here."""
    value: float
    model: str
    condition: str
    """What the vectors were, and on what, as far as the paper says."""
    source: str


REPORTED = (
    Reported("adjacent cosine", 0.888, "LVR, retrained as a baseline", "latents", "ReaLVR"),
    Reported("adjacent cosine", 0.992, "LVR, retrained as a baseline", "a dummy block", "ReaLVR"),
    Reported("adjacent cosine", 0.482, "LVR, retrained as a baseline", "ordinary text states", "ReaLVR"),
)
