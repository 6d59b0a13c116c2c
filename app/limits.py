"""Every limit on what a visitor may ask, in one place: one's own page has room, a public instance shares it.

Limits of the formats themselves lie with their readers: MAX_PIXELS and MAX_ASPECT in latent_core/model/images.py, the
ranges of settings in latent_core/settings.py, MAX_QUESTION in latent_core/reasoner.py. None of these here is above
theirs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from app.controls import CONTROLS
from latent_core.model.images import MAX_PIXELS
from latent_core.settings import MAX_LATENTS, MAX_TOKENS, check

MAX_NAME = 64
"""Characters of a session's name, which the visitor's program chooses; Gradio's own have 11."""
MAX_BODY = 2_000_000
"""Bytes of a request that is no upload. The largest that the page sends, a question with four images, has 20,000."""
MAX_BODIES = 50_000_000
"""Bytes of all such requests that are being read at one time."""
MAX_STREAMS = 4
"""Answers of one session that last: the heartbeat of a tab, what is said to it, and a little more."""
MAX_NESTING = 64
"""Depth of lists and objects in a request; the page sends at most 6."""
MAX_UPLOADS = 4
"""Files of one upload request: as many as a question takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """What one instance allows. The defaults are those of a page on one's own machine."""

    images: int = 4
    """Images per question: what the page has room for."""
    file_bytes: int = 10_000_000
    """Bytes of one uploaded file: a camera's JPEG, or the trace of 600 steps of a 7B model at 16 bits."""
    pixels: int = MAX_PIXELS
    """Width × height of an uploaded image."""
    question: int = 4000
    """Characters of a question."""
    tokens: int = MAX_TOKENS
    """Tokens of a response; latents are limited by the next two."""
    blocks: int = 64
    """Blocks of a response."""
    latents: int = MAX_LATENTS
    """K, latents of a block."""
    queue: int = 32
    """Questions that wait, and as many inspections; the next one is refused with a sentence."""
    at_once: int = 4
    """Models at work at once, for the runs and inspections of all visitors together."""
    inspections_at_once: int = 2
    """Inspections, comparisons, regions and opened traces at once; nobody's question waits for them."""
    light_at_once: int = 8
    """Of what takes a moment: scenes, checks of images."""
    run_seconds: float = 1800.0
    """Seconds of a run, waiting at the speed `slow` included. Checked between tokens, so one forward may exceed it."""
    runs_a_minute: int | None = None
    """Runs that one session may start in a minute; None: as many as it likes."""
    inspections_a_minute: int | None = None
    """Inspections, comparisons and regions of one session in a minute, which cost about as much as a short run."""
    worker_seconds: float = 60.0
    """Seconds of CPU that reading one picture or one run may take, and its figures."""
    worker_bytes: int = 8_000_000_000
    """Memory that it may take."""
    session_runs: int = 20
    """Runs kept per session; the oldest goes with its trace."""
    all_runs: int = 10_000
    """Runs kept of all sessions together; the oldest go with their traces."""
    sessions: int = 500
    """Sessions that are remembered; those whose page is not open make room, those not heard of for longest first."""
    connections: int = 2000
    """Open connections, a few of every tab; fewer where the process may not open twice as many files."""
    states: int = 100
    """Sessions whose fields Gradio remembers; in one forgotten the scene in view has no known answer."""
    away_seconds: float = 40.0
    """Seconds for which the runs of a session, and answers to it, outlast its page or the connection to it."""
    waiting_bytes: int = 16_000_000
    """Bytes of answers that wait for one session to listen; above it the answers on their way there are dropped."""
    all_waiting_bytes: int = 256_000_000
    """Bytes of answers that wait for all sessions together."""
    keep_seconds: float = 86_400.0
    """Age at which uploads and traces are deleted, whether or not their tab is still open."""
    disk_bytes: int = 20_000_000_000
    """Bytes of all uploads and traces; above it the oldest make room, of the address that has most."""
    disk_files: int = 200_000
    """Uploads and traces, as `disk_bytes`."""
    share: float = 1.0
    """Part of the bytes, files and sessions that one address may have: what is above it is refused with a sentence."""
    settled_seconds: float = 600.0
    """Age at which a file makes room for others of the same address."""

    def check_settings(self, settings: Mapping[str, Any]) -> None:
        """Raises ValueError for settings above what this instance gives; the checkpoint checks the rest."""
        for control in CONTROLS:
            if control.limit is not None:
                value, most = settings.get(control.name, 0), getattr(self, control.limit)
                called = control.called or control.name
                check(
                    value <= most, f"{called} is {value}, but at most {most} is allowed here; choose a smaller number."
                )

    def check_question(self, question: object) -> str:
        """The question, if it is one. Raises ValueError with a sentence otherwise."""
        check(isinstance(question, str), "The question is not text; write one.")
        assert isinstance(question, str)
        check(
            len(question) <= self.question,
            f"The question has {len(question):,} characters; at most {self.question:,} are accepted. Shorten it.",
        )
        return question

    def check_images(self, count: int) -> None:
        """Raises ValueError for more images than a question may carry."""
        check(count <= self.images, f"There are {count} images; a question may carry at most {self.images}.")

    @property
    def places(self) -> int:
        """Events under way at once."""
        return self.at_once + self.inspections_at_once + self.light_at_once + 1

    @property
    def retention_notice(self) -> str:
        """The sentence on the page about what becomes of a visitor's data."""
        return (
            "What you upload and your runs stay on this server, are shown to nobody else and are not used for "
            "training. Runs are deleted within a minute after you close or reload the page; images, and whatever else "
            f"is left, {_span(self.keep_seconds)} after they arrived, or earlier where space runs out."
        )


OWN = Limits()
"""A page on one's own machine."""

PUBLIC = Limits(
    pixels=25_000_000,  # 75 MB decoded, for each of the runs at once
    question=2000,
    tokens=512,  # the embedded models need fewer than 130
    blocks=16,
    latents=64,  # the embedded models' largest grid has 36
    run_seconds=60.0,  # 512 tokens at the slow speed take 21 s, the most latents 41 s
    runs_a_minute=30,  # a run at the slow speed takes 2 s, and dragging K starts a few
    inspections_a_minute=60,
    worker_seconds=10.0,  # the largest picture takes 1, the figures of the longest run 5
    worker_bytes=1_500_000_000,
    all_runs=2000,
    keep_seconds=3600.0,
    disk_bytes=2_000_000_000,  # a Space has 50 GB, and shares them with the packages
    disk_files=20_000,
    share=0.25,  # a class behind one address has room for 50 camera images, and 125 open pages
)
"""A page for everybody. Queue, runs at once and sessions as above: 36 visitors are served or told to wait."""


def _span(seconds: float) -> str:
    """`3600` → `an hour`."""
    hours = round(seconds / 3600)
    return "an hour" if hours == 1 else f"{hours} hours"
