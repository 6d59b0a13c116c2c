"""An example: a question with its reasoning and answer, from which every method's collator makes its inputs."""

from dataclasses import dataclass, field
from typing import Literal

from PIL import Image

from latent_core.settings import check

Box = tuple[float, float, float, float]
"""(x0, y0, x1, y1) as shares of the image's width and height, in 0…1, x0 < x1 and y0 < y1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Step:
    """One step of reasoning: text, then a latent step, then the observation that it allows."""

    text: str
    """Said before the latent step; may be empty."""
    observation: str
    """Said after it, and only possible because of it; may be empty."""
    image: Image.Image | None = None
    """The auxiliary image that stands for the latent step (Monet, DeepLatent)."""
    region: Box | None = None
    """The part of the question image that the latent step is about (LVR, grounding)."""
    image_index: int = 0
    """The question image that `region` lies on."""
    focus: tuple[Box, ...] = ()
    """The separate parts of a `region` that spans several; otherwise empty."""


@dataclass(frozen=True, slots=True)
class TextSpan:
    """A stretch of the response's text."""

    text: str
    role: Literal["text", "observation", "answer"]


@dataclass(frozen=True, slots=True, eq=False)
class LatentStep:
    """The place of a latent step in a response."""

    step: Step


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """A question about one or more images, its reasoning steps and its answer."""

    images: tuple[Image.Image, ...]
    question: str
    steps: tuple[Step, ...]
    answer: str
    name: str
    """Names the sample in errors and reports, e.g. `find/test/7`."""
    metadata: dict[str, object] = field(default_factory=dict)
    parts: tuple[TextSpan | LatentStep, ...] | None = None
    """The response word for word, where it is richer than one text and one observation per step (published data);
    its latent steps are those of `steps`, in order. None: it follows from steps and answer."""

    def __post_init__(self) -> None:
        for step in self.steps:
            check(
                not self.images or 0 <= step.image_index < len(self.images),
                f"{self.name}: a step looks at image {step.image_index + 1} of {len(self.images)}.",
            )
