"""A loaded checkpoint that answers questions: images and a question in, events or a trace out.

Joins processor, engine and method; the engine knows no text and the processor no model.
"""

import contextlib
import dataclasses
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.metadata import version

from PIL import Image

from latent_core.config import MethodConfig
from latent_core.decoding import engine
from latent_core.events import Event, TokenEvent
from latent_core.methods import LatentMethod
from latent_core.methods.requests import Feed
from latent_core.model.backbone import Backbone
from latent_core.model.fitting import Fit
from latent_core.model.processor import Detokenizer, Processor, Prompt
from latent_core.records import nearest
from latent_core.settings import Settings, check, counted, plain, short
from latent_core.trace import Source, Trace

MAX_QUESTION = 4000
"""Characters; a page of text. Longer ones are refused rather than cut."""
MAX_IMAGES = 16

Images = Image.Image | Sequence[Image.Image]
"""One image or several, of any Pillow mode."""
Intervention = Callable[[Feed], Feed]


def _image_list(images: object) -> list[Image.Image]:
    """The images of a question. Raises ValueError for what is no Pillow image, such as a path."""
    if isinstance(images, Image.Image):
        return [images]
    remedy = "give Pillow images: PIL.Image.open(path) of a file, PIL.Image.fromarray(values) of an array"
    several = isinstance(images, Iterable) and not isinstance(images, (str, bytes, Mapping))
    check(several and not hasattr(images, "__array__"), f"images is {short(images)}; {remedy}.")
    listed = list(images)
    for number, image in enumerate(listed, start=1):
        check(isinstance(image, Image.Image), f"Image {number} is {short(image)}; {remedy}.")
    return listed


@cache
def _versions() -> dict[str, str]:
    """Versions by package, read once: looking a package up takes as long as several tokens."""
    return {"python": platform.python_version(), **{name: version(name) for name in ("torch", "transformers")}}


class Reasoner:
    """Backbone, processor and method of one checkpoint. Holds no state of a run: streams may interleave."""

    def __init__(
        self, *, name: str, backbone: Backbone, processor: Processor, method: LatentMethod, config: MethodConfig
    ) -> None:
        self.name, self.backbone, self.processor = name, backbone, processor
        self.method, self.config = method, config

    @property
    def num_layers(self) -> int:
        """Decoder layers, whose attention can be recorded."""
        return self.backbone.num_layers

    @property
    def fit(self) -> Fit:
        """The resizing of an image to what the model sees; an image that it has made already is left alone."""
        return self.processor.fit

    def stream(
        self,
        images: Images,
        question: str,
        *,
        intervene: Intervention | None = None,
        record: bool = True,
        attention: Sequence[int] | bool = False,
        **settings: object,
    ) -> Iterator[Event]:
        """The events of one run as they happen; closing the iterator cancels the run.

        `settings` are fields of Settings; those left out, and `rule=None`, are the checkpoint's. Without `record`,
        events hold no vectors. `attention` names the decoder layers, 0-based, whose attention at text and latents
        the events hold; True for all. Raises ValueError, before the first event, for what cannot be asked.
        """
        chosen = self.settings(**settings)
        return self._decode([self.prompt(images, question)], [chosen], [intervene], record, attention)

    def run(
        self,
        images: Images,
        question: str,
        *,
        intervene: Intervention | None = None,
        record: bool = True,
        attention: Sequence[int] | bool = False,
        **settings: object,
    ) -> Trace:
        """Like `stream`, to the end."""
        events = self.stream(images, question, intervene=intervene, record=record, attention=attention, **settings)
        return self.trace(events, question, **settings)

    def run_batch(
        self,
        images: Sequence[Images],
        questions: Sequence[str],
        *,
        intervene: Intervention | Sequence[Intervention | None] | None = None,
        record: bool = True,
        attention: Sequence[int] | bool = False,
        **settings: object,
    ) -> list[Trace]:
        """Many runs in lockstep, each as it would be alone. A setting is one value for all or a list, one per run."""
        for name, value, what in (("images", images, "an image or a list of images"), ("questions", questions, "one")):
            many = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
            check(many, f"{name} is {short(value)}; give a list with {what} for each row.")
        count = len(questions)
        per_run = self._per_run(settings | {"intervene": intervene, "images": list(images)}, count)
        hooks, images_per_run = ([values.pop(name) for values in per_run] for name in ("intervene", "images"))
        chosen = [self.settings(**values) for values in per_run]
        prompts = [self.prompt(*pair) for pair in zip(images_per_run, questions, strict=True)]
        if not prompts:
            return []
        events: list[list[Event]] = [[] for _ in range(count)]
        for event in self._decode(prompts, chosen, hooks, record, attention):
            events[event.sequence].append(event)
        return [self.trace(*each[:2], **each[2]) for each in zip(events, questions, per_run, strict=True)]

    def settings(self, **values: object) -> Settings:
        """Settings with the checkpoint's defaults and attention rule filled in.

        Raises ValueError for unknown names, values out of range and a K that the checkpoint does not offer.
        """
        fields = Settings.__dataclass_fields__
        for name in values:
            check(name in fields, f"Unknown setting {name!r}{nearest(name, fields)}")
        defaults = dataclasses.asdict(self.config.sampling) | {"latents": self.config.latents.default}
        settings = Settings(**{**defaults, **values})
        latents = self.config.latents
        check(
            latents.min <= settings.latents <= latents.max,
            f"K is {settings.latents}, but {self.name} thinks in blocks of {latents.min} to {latents.max} latents; "
            "choose a number in that range.",
        )
        return dataclasses.replace(settings, rule=settings.rule or self.config.rule)

    def trace(self, events: Iterable[Event], question: str, **settings: object) -> Trace:
        """The trace of events that `stream` gave for the same question and settings; it may have been stopped."""
        source = Source(
            checkpoint=self.name,
            method=self.config.method,
            world=self.config.world,
            dtype=str(self.backbone.dtype).removeprefix("torch."),
            versions=_versions(),
        )
        system = self.processor.system(self.config.system)
        chosen = self.settings(**settings)
        return Trace.collect(events, question=question, system=system, settings=chosen, source=source)

    def prompt(self, images: Images, question: str) -> Prompt:
        """The checkpoint's model inputs for a question. Raises ValueError for what cannot be asked."""
        listed = _image_list(images)
        check(isinstance(question, str), f"The question is {short(question)}, which is not text; write one.")
        check(bool(listed), "There is no image; add the one that the question is about.")
        check(len(listed) <= MAX_IMAGES, f"{len(listed)} images were given; ask about at most {MAX_IMAGES}.")
        check(bool(question.strip()), "The question is empty; write one.")
        check(
            len(question) <= MAX_QUESTION,
            f"The question has {len(question):,} characters; at most {MAX_QUESTION:,} are accepted. Shorten it.",
        )
        lone = [letter for letter in question if "\ud800" <= letter <= "\udfff"]
        check(not lone, "The question holds half a character (a lone surrogate), which is not text; delete it.")
        return self.processor(listed, question, self.config.system)

    def _decode(
        self,
        prompts: Sequence[Prompt],
        settings: Sequence[Settings],
        intervene: Sequence[Intervention | None],
        record: bool,
        attention: Sequence[int] | bool,
    ) -> Iterator[Event]:
        """The engine's events with their text filled in."""
        layers = self._layers(attention)
        for hook in intervene:
            check(hook is None or callable(hook), f"intervene is {short(hook)}; give a function from feed to feed.")
        decoders: list[Detokenizer] = [self.processor.decoder() for _ in prompts]
        events = engine.decode(
            self.backbone, self.method, prompts, settings, intervene=intervene, record=record, attention=tuple(layers)
        )
        with contextlib.closing(events):
            for event in events:
                if isinstance(event, TokenEvent):
                    event = dataclasses.replace(event, text=decoders[event.sequence].push(event.token_id))
                yield event

    def _layers(self, attention: Sequence[int] | bool) -> tuple[int, ...]:
        """The decoder layers whose attention is recorded. Raises ValueError for what names none."""
        all_layers = range(self.num_layers)
        if isinstance(attention, bool):
            return tuple(all_layers) if attention else ()
        listed = isinstance(attention, Iterable) and not isinstance(attention, (str, bytes))
        check(listed, f"attention is {short(attention)}; give True, False or a list of numbers of blocks.")
        layers = tuple(plain(layer, int) for layer in attention)
        for layer in layers:
            exists = type(layer) is int and layer in all_layers
            check(exists, f"attention names block {short(layer)}; {self.name} has blocks 0 to {len(all_layers) - 1}.")
        return layers

    @staticmethod
    def _per_run(values: dict[str, object], count: int) -> list[dict[str, object]]:
        """One dictionary per run: lists are spread, everything else is repeated."""
        for name, value in values.items():
            if isinstance(value, (list, tuple)):
                check(
                    len(value) == count,
                    f"{name} has {counted(len(value), 'value')} for {counted(count, 'question')}; give one for each.",
                )
        return [
            {name: value[number] if isinstance(value, (list, tuple)) else value for name, value in values.items()}
            for number in range(count)
        ]
