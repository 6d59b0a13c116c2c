"""The trace of a run: collected from events, saved, loaded, and replayed without a model.

One safetensors file: tensors by name, all else as JSON in the metadata entry `trace`. Nothing is pickled, and loading
trusts nothing: whatever does not fit is a ValueError that names it.

Shapes: S recorded levels, N image tokens, D model width, K latents of a block.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from latent_core import answers
from latent_core.events import SEGMENTS, AttentionSummary, Event, FinishEvent, LatentEvent, StartEvent, TokenEvent
from latent_core.files import write_file
from latent_core.records import from_json, to_json
from latent_core.settings import MAX_RUN_LATENTS, MAX_TOKENS, Settings, short
from latent_core.stored import Tensors, check_header, whole

VERSION = 2
MAX_STEPS = MAX_TOKENS + MAX_RUN_LATENTS
"""Tokens and latents of a run that is read: what Settings allow."""
MAX_HEADER = 512 * MAX_STEPS
"""Bytes of a file before its tensors; a step takes about 300, its text included."""
PIECE = 1_000_000
"""Numbers that are tried in 16 bits at once."""
Step = TokenEvent | LatentEvent
_STEPS: dict[str, type[Step]] = {"token": TokenEvent, "latent": LatentEvent}
_VECTORS = {"token": ("hidden",), "latent": ("fed", "hidden")}
_FILE_NAMES = {"sequence": "row", "attention": "look"}
"""Fields of events whose names in files, older than these, stay."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """One latent block of a run."""

    latents: torch.Tensor
    """(K, D) the vectors that were fed, after any intervention; K = 0 where nothing was recorded."""
    hidden: torch.Tensor
    """(K, D) the states that came back, after the final norm."""
    events: tuple[LatentEvent, ...]
    """The K latents one by one."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Attention:
    """Recorded attention of a run; Q positions that recorded it, E layers, H heads."""

    layers: tuple[int, ...]
    """Decoder layers, 0-based."""
    steps: tuple[int, ...]
    """(Q,) numbers in `Trace.steps`: a latent's own position, a token's the one whose state produced it."""
    summaries: tuple[AttentionSummary, ...]
    """(Q,) what each of them recorded. Where that is large, it is better read one by one."""

    @cached_property
    def image(self) -> torch.Tensor:
        """(Q, E, H, N) float16: the weights on the image tokens, in 0…1."""
        return torch.stack([summary.image for summary in self.summaries])

    @cached_property
    def shares(self) -> torch.Tensor:
        """(Q, E, H, 5) by segment, in the order of events.SEGMENTS."""
        return torch.stack([summary.shares for summary in self.summaries])

    @cached_property
    def entropy(self) -> torch.Tensor:
        """(Q, E, H) over all slots, in nats."""
        return torch.stack([summary.entropy for summary in self.summaries])


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source of a run: the checkpoint that produced it, and the versions of packages."""

    checkpoint: str
    """Name, folder or Hub id."""
    method: str
    world: str | None = None
    """The micro-world that the checkpoint is limited to, e.g. `glyphs`."""
    dtype: str = "float32"
    versions: dict[str, str]
    """Package → version."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Trace:
    """The trace of one finished or stopped run."""

    question: str
    system: str
    settings: Settings
    """As decoded: the checkpoint's own attention rule and defaults are filled in."""
    source: Source
    start: StartEvent
    steps: tuple[Step, ...]
    """Tokens and latents in order."""
    finish: FinishEvent

    @classmethod
    def collect(
        cls, events: Iterable[Event], *, question: str, system: str, settings: Settings, source: Source
    ) -> "Trace":
        """The trace of one sequence's events. A stream that was stopped early ends as `cancelled`.

        Raises ValueError for a stream that ended before its StartEvent.
        """
        start, steps, finish = None, [], None
        for event in events:
            match event:
                case StartEvent():
                    start = event
                case TokenEvent() | LatentEvent():
                    steps.append(event)
                case FinishEvent():
                    finish = event
                case _:
                    raise TypeError(f"{type(event).__name__} is no event of a run.")
        if start is None:
            raise ValueError("The run was stopped before its prompt was read; there is nothing to keep.")
        return cls(
            question=question,
            system=system,
            settings=settings,
            source=source,
            start=start,
            steps=tuple(steps),
            finish=finish or _cancelled(start.sequence, steps),
        )

    def events(self) -> Iterator[Event]:
        """The events of the run again, equal to those it was collected from."""
        yield self.start
        yield from self.steps
        yield self.finish

    @property
    def images(self) -> tuple[torch.Tensor, ...]:
        """The images as the model saw them, one uint8 (H, W, 3) each."""
        return self.start.images

    @cached_property
    def tokens(self) -> tuple[TokenEvent, ...]:
        """The generated tokens, markers included, latents left out."""
        return tuple(step for step in self.steps if isinstance(step, TokenEvent))

    @cached_property
    def text(self) -> str:
        """The response without control tokens."""
        return "".join(token.text for token in self.tokens)

    @property
    def answer(self) -> str | None:
        """The content of the last `\\boxed{…}` or `<answer>…</answer>`."""
        return answers.extract(self.text)

    @cached_property
    def attention(self) -> "Attention | None":
        """The recorded attention of tokens and latents; None where there is none."""
        recorded = [number for number, step in enumerate(self.steps) if step.attention is not None]
        if not recorded:
            return None
        return Attention(
            layers=self.start.layers,
            steps=tuple(recorded),
            summaries=tuple(self.steps[number].attention for number in recorded),
        )

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """One per opening token, empty ones included."""
        latents: dict[int, list[LatentEvent]] = {}
        for step in self.steps:
            if isinstance(step, LatentEvent):
                latents.setdefault(step.block, []).append(step)
        count = max([token.kind for token in self.tokens].count("open"), max(latents, default=-1) + 1)
        return tuple(self._block(latents.get(number, [])) for number in range(count))

    def _block(self, latents: list[LatentEvent]) -> Block:
        width = self.start.image_states.shape[-1]

        def stacked(name: str) -> torch.Tensor:
            vectors = [getattr(latent, name) for latent in latents if getattr(latent, name) is not None]
            return torch.stack(vectors) if vectors else torch.empty(0, width)

        return Block(latents=stacked("fed"), hidden=stacked("hidden"), events=tuple(latents))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes one file, whole or not at all. Raises OSError with a plain sentence, for a full disk among others."""
        tensors = {"image_states": self.start.image_states}
        tensors |= {f"image.{number}": image for number, image in enumerate(self.images)}
        records, columns = _pack(self.steps)
        tensors |= {name: torch.stack(vectors) for name, vectors in columns.items()}
        summaries = [step.attention for step in self.steps if step.attention is not None]
        if summaries:
            tensors["look.image"] = torch.stack([summary.image for summary in summaries])
            rest = [torch.cat([summary.entropy[..., None], summary.shares], -1) for summary in summaries]
            tensors["look.rest"] = torch.stack(rest)
        content = {
            "version": VERSION,
            "question": self.question,
            "system": self.system,
            "settings": to_json(self.settings),
            "source": to_json(self.source),
            "start": {name: value for name, value in _to_file(self.start).items() if name != "images"},
            "steps": records,
            "finish": _to_file(self.finish),
        }
        compact = {name: _compact(tensor) for name, tensor in tensors.items()}
        write_file(path, save(compact, {"trace": json.dumps(content)}))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Trace":
        """Reads what `save` wrote, in about twice the memory of a file of 16-bit numbers: its vectors share theirs.

        Raises ValueError that names the file and what is wrong with it.
        """
        try:
            return cls._load(Path(path))
        except RecursionError as error:
            raise ValueError(f"{Path(path).name} is not a trace that can be read: it is nested too deeply.") from error
        except OSError as error:  # which may name the whole path
            reason = error.strerror or "there is no such file"  # safetensors' own says no more
            raise ValueError(f"{Path(path).name} is not a trace that can be read: {reason}.") from error
        except (ValueError, SafetensorError) as error:
            raise ValueError(f"{Path(path).name} is not a trace that can be read: {error}") from error

    @classmethod
    def _load(cls, path: Path) -> "Trace":
        check_header(path, MAX_HEADER)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            if "trace" not in metadata:
                raise ValueError("it has no `trace` entry in its metadata.")
            content = json.loads(metadata["trace"], parse_int=whole)
            version = content.get("version") if isinstance(content, dict) else None
            if version != VERSION:
                raise ValueError(f"its format version is {short(version)}; this program reads version {VERSION}.")
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
        if "finish" in content:
            content["finish"] = _from_file(content["finish"])
        parts = from_json(_File, content, "trace")
        if len(parts.steps) > MAX_STEPS:
            raise ValueError(f"it has {len(parts.steps):,} words and latents; a run has at most {MAX_STEPS:,}.")
        tensors = Tensors(stored)
        start = _start(parts.start, tensors)
        # a run that was stopped at once recorded attention nowhere
        attended = any(record.get("look") for record in parts.steps)
        summaries = _summaries(start, tensors) if attended else iter(())
        steps = tuple(
            _unpack(record, f"steps[{number}]", tensors, summaries) for number, record in enumerate(parts.steps)
        )
        if next(summaries, None) is not None:
            raise ValueError("it holds attention that belongs to no event.")
        tensors.check_all_used()
        if any(isinstance(step, LatentEvent) and not 0 <= step.block < len(steps) for step in steps):
            raise ValueError("a latent belongs to a block that does not exist.")
        return cls(
            question=parts.question,
            system=parts.system,
            settings=parts.settings,
            source=parts.source,
            start=start,
            steps=steps,
            finish=parts.finish,
        )


@dataclass(frozen=True, kw_only=True)
class _File:
    """The JSON part of a trace file."""

    version: int
    question: str
    system: str
    settings: Settings
    source: Source
    start: dict[str, object]
    steps: tuple[dict[str, object], ...]
    finish: FinishEvent


def _to_file(event: Event) -> dict[str, object]:
    """JSON values of an event under their names in files."""
    return {_FILE_NAMES.get(name, name): value for name, value in to_json(event).items()}


def _from_file(record: object) -> object:
    """A record of a file under the names of an event's fields; what is no record is left for `from_json` to refuse."""
    if not isinstance(record, dict):
        return record
    fields = {stored: name for name, stored in _FILE_NAMES.items()}
    return {fields.get(name, name): value for name, value in record.items()}


def _pack(steps: Iterable[Step]) -> tuple[list[dict[str, object]], dict[str, list[torch.Tensor]]]:
    """JSON records, and per vector field the vectors; a record's `rows` says where its vectors lie in these stacks."""
    records, columns = [], {}
    for step in steps:
        kind = "token" if isinstance(step, TokenEvent) else "latent"
        rows = {}
        for name in _VECTORS[kind]:
            if (vector := getattr(step, name)) is not None:
                stack = columns.setdefault(f"{kind}.{name}", [])
                rows[name] = len(stack)
                stack.append(vector)
        fields = _to_file(replace(step, attention=None))
        if step.attention is not None:
            fields["look"] = True
        records.append({"event": kind, "rows": rows, **fields})
    return records, columns


def _summaries(start: StartEvent, tensors: Tensors) -> Iterator[AttentionSummary]:
    """Recorded attention, in the order of the steps that have it."""
    if not start.layers:
        return
    image, rest = tensors.take("look.image", 4, torch.float16), tensors.take("look.rest", 4, torch.float32)
    expected = *rest.shape[:3], start.image_states.shape[1]
    if image.shape != expected or rest.shape[1] != len(start.layers) or rest.shape[3] != 1 + len(SEGMENTS):
        shapes = f"{tuple(image.shape)} and {tuple(rest.shape)}"
        raise ValueError(f"its recorded attention is {shapes}, which fits neither its layers nor its images.")
    for weights, other in zip(image, rest, strict=True):
        yield AttentionSummary(image=weights, entropy=other[..., 0], shares=other[..., 1:])


def _unpack(record: dict[str, object], where: str, tensors: Tensors, summaries: Iterator[AttentionSummary]) -> Step:
    values = dict(record)
    kind, rows, attended = values.pop("event", None), values.pop("rows", None), values.pop("look", False)
    is_step = isinstance(kind, str) and kind in _STEPS
    if not is_step or not isinstance(rows, dict) or not rows.keys() <= set(_VECTORS[kind]):
        raise ValueError(f"{where} is neither a token nor a latent.")
    vectors = {name: tensors.row(f"{kind}.{name}", index) for name, index in rows.items()}
    if attended:
        vectors["attention"] = next(summaries, None)
        if vectors["attention"] is None:
            raise ValueError(f"{where} has no recorded attention.")
    return from_json(_STEPS[kind], _from_file(values), where, vectors)


def _start(record: dict[str, object], tensors: Tensors) -> StartEvent:
    grids = record.get("grids")
    count = len(grids) if isinstance(grids, list) else 0
    images = tuple(tensors.take(f"image.{number}", 3, torch.uint8) for number in range(count))
    states = tensors.take("image_states", 3, torch.float32)
    start = from_json(StartEvent, _from_file(record), "start", {"images": images, "image_states": states})
    if any(image.shape[-1] != 3 or image.numel() == 0 for image in images):
        raise ValueError("its images are not (height, width, 3).")
    if len(states) != len(start.levels):
        raise ValueError(f"it names {len(start.levels)} levels, but holds image states of {len(states)}.")
    if any(min(grid) < 1 for grid in start.grids):
        raise ValueError(f"its grids are {short(start.grids)}; an image has at least one row and one column.")
    patches = sum(rows * columns for rows, columns in start.grids)
    if states.shape[1] != patches:
        raise ValueError(f"its grids have {patches} image tokens, but it holds the states of {states.shape[1]}.")
    return start


def _compact(tensor: torch.Tensor) -> torch.Tensor:
    """In 16 bits where that loses nothing, which halves the file of a model that ran in 16 bits."""
    tensor = tensor.contiguous()
    pieces = tensor.flatten().split(PIECE)
    for dtype in (torch.bfloat16, torch.float16) if tensor.dtype == torch.float32 else ():
        if all(torch.equal(piece.to(dtype).float(), piece) for piece in pieces):
            return tensor.to(dtype)
    return tensor


def _cancelled(sequence: int, steps: list[Step]) -> FinishEvent:
    tokens = [step for step in steps if isinstance(step, TokenEvent)]
    latents = [step for step in steps if isinstance(step, LatentEvent)]
    return FinishEvent(
        sequence=sequence,
        reason="cancelled",
        tokens=len(tokens),
        latents=len(latents),
        blocks=[token.kind for token in tokens].count("open"),
        text_seconds=sum(token.seconds for token in tokens),
        latent_seconds=sum(latent.seconds for latent in latents),
        max_p_open=max((token.p_open for token in tokens), default=0.0),
    )
