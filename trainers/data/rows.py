"""Rows of published datasets, whatever their format: read, checked, ordered, skipped and reported.

A format is a module (monet.py, lvr.py): `parse_row` checks a row of JSON, `to_example` puts its images in.
"""

import hashlib
import io
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from random import Random
from typing import Literal, Protocol

from PIL import Image
from torch.utils.data import Dataset

from latent_core import glyphs
from latent_core.example import Example
from latent_core.files import write_file, write_folder
from latent_core.lines import append_line
from latent_core.model.images import ImageProblem, load_image
from trainers.data.files import Unreadable, read_rows
from trainers.data.store import ZIP, ImageStore
from trainers.data.text import clip, no_character, printable, texts


class BadRow(ValueError):
    """A row that cannot be used: its name and why; its message is short and can be printed, whatever the row holds."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"Row {printable(clip(name, 100))}: {printable(clip(reason, 500))}")
        self.name, self.reason = name, reason

    def __reduce__(self) -> tuple[type["BadRow"], tuple[str, str]]:
        return BadRow, (self.name, self.reason)  # crosses the border of a loader's process


class Row(Protocol):
    """A checked row of any format."""

    name: str
    dataset: str
    paths: tuple[str, ...]
    """Its images."""


@dataclass(frozen=True, slots=True)
class Format:
    """A published format: how its rows are read and written."""

    parse_row: Callable[[object, str], Row]
    """A row of JSON and the name of its place; raises BadRow."""
    to_example: Callable[[Row, Sequence[Image.Image]], Example]
    """The row with its images, in the order of its paths."""
    write_rows: Callable[[Iterable[Example], str | os.PathLike[str], str], Path]
    """Writes examples into a folder, as a dataset of this name; returns the file of rows."""
    images: Callable[[dict[str, object]], list[bytes]] | None = None
    """A row's images, where they lie within it; none: the row names their paths."""
    reasoning: bool = True
    """Whether rows have steps of reasoning, not questions and answers alone."""
    families: tuple[str, ...] = (*glyphs.FAMILIES, "list", "views")
    """Families of Glyphs of which the format can hold every sample."""


def field(row: object, key: str, kind: type, place: str) -> object:
    """The value of a field. Raises BadRow where it is missing or of another type."""
    value = row.get(key) if isinstance(row, dict) else None
    if not isinstance(value, kind):
        raise BadRow(place, f"{key} is {type(value).__name__}; it has to be a {kind.__name__}.")
    return value


IMAGE = "<image>"
"""Stands for an image in a question of LLaVA's kind of rows."""


def image_paths(row: dict[str, object], name: str) -> tuple[str, ...]:
    """The paths under `image`, one or a list. Raises BadRow for anything else."""
    images = row.get("image")
    images = [images] if isinstance(images, str) else images
    if not isinstance(images, list) or not images or not all(isinstance(path, str) for path in images):
        raise BadRow(name, "image has to list the paths of one or more images.")
    return tuple(images)


def exchange(row: object, name: str) -> tuple[str, str]:
    """The first question and answer under `conversations`. Raises BadRow where they do not begin so."""
    turns = field(row, "conversations", list, name)[:2]
    if [turn.get("from") if isinstance(turn, dict) else None for turn in turns] != ["human", "gpt"]:
        raise BadRow(name, "conversations have to begin with a turn of human and one of gpt.")
    question, answer = (field(turn, "value", str, name) for turn in turns)
    return question, answer


def without_marks(question: str) -> str:
    """The question without marks of images and a newline on either side, as LVR's released code has it."""
    return re.sub(rf"\n?{IMAGE}\n?", "", question)


class PublishedDataset(Dataset):
    """Rows of one or several files of a published format.

    Their order depends on the seed alone; random numbers come with them as in GlyphsDataset. on_bad_row "error" stops
    with BadRow; "skip" leaves a row out and lists it, name and reason, in `report` (JSON lines). Every row and the
    presence of its images are checked at the start, pixels when they are needed.
    """

    def __init__(
        self,
        files: Sequence[str | os.PathLike[str]],
        root: str | os.PathLike[str],
        format: Format,
        *,
        size: int | None = None,
        batch: int = 1,
        split: Literal["train", "val", "all"] = "all",
        seed: int = 0,
        instruction: str = "",
        on_bad_row: Literal["error", "skip"] = "error",
        report: Path | None = None,
    ) -> None:
        """format: how rows are read. size: number of items, over as many epochs as it takes; None: one epoch; 0 where
        rows are only looked at, then all may be bad. batch: as in GlyphsDataset. instruction: appended to every
        question.

        Raises BadRow; ValueError for a file that cannot be read and where no row is left.
        """
        if escape := no_character(instruction):
            raise ValueError(f"The instruction holds {escape}, which is no character.")
        self.store, self.format, self.batch, self.seed = ImageStore(root), format, batch, seed
        self.instruction = instruction
        self.skip, self.report = on_bad_row == "skip", report
        self.bad: list[BadRow] = []
        self.empty: list[str] = []
        """Sentences on files without rows."""
        self._inside: dict[str, tuple[Sequence[dict[str, object]], int]] = {}
        """Where the rows lie whose images are within them, by place."""
        paths = [Path(file) for file in files]
        pairs = zip(paths, short_names(paths), strict=True)
        self.rows = [row for pair in pairs for row in self._read(*pair) if in_split(row.name, split)]
        if not self.rows and (size != 0 or not self.bad):
            raise ValueError(self._why_none(files, split))
        self.size = len(self.rows) if size is None else size
        self._order: tuple[int, list[int]] = (-1, [])
        if report is not None and self.bad:
            lines = (json.dumps({"name": bad.name, "reason": bad.reason}) + "\n" for bad in self.bad)
            write_file(report, "".join(lines).encode())

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Example, Random]:
        if not 0 <= index < self.size:
            raise IndexError(index)
        rng = Random(f"monet/{self.seed}/{index - index % self.batch}")
        epoch, place = divmod(index, len(self.rows))
        last: BadRow | None = None
        for step in range(len(self.rows)):
            row = self.rows[self.order(epoch)[(place + step) % len(self.rows)]]
            try:
                return self.example(row), rng
            except BadRow as error:
                if not self.skip:
                    raise
                self._note(error)  # its place is taken by the next row
                last = error
        raise ValueError(f"No row of the data has images that can be read; the last one: {last}")

    def example(self, row: Row) -> Example:
        """A row with its pixels and the instruction behind its question. Raises BadRow."""
        try:
            images = self._images(row)
        except ImageProblem as error:
            raise BadRow(row.name, str(error)) from error
        example = self.format.to_example(row, images)
        return replace(example, question=f"{example.question} {self.instruction}".strip())

    def _images(self, row: Row) -> list[Image.Image]:
        if self.format.images is None:
            return [self.store.load(path) for path in row.paths]
        rows, number = self._inside[row.name]
        return [load_image(data) for data in self.format.images(rows[number])]

    def order(self, epoch: int) -> list[int]:
        """Row numbers of an epoch."""
        if self._order[0] != epoch:
            order = list(range(len(self.rows)))
            Random(f"order/{self.seed}/{epoch}").shuffle(order)
            self._order = epoch, order
        return self._order[1]

    def counts(self) -> Counter[str]:
        """Usable rows by dataset_name."""
        return Counter(row.dataset for row in self.rows)

    def _read(self, file: Path, name: str) -> Iterator[Row]:
        """The usable rows of a file; `name` says which one in the rows' places."""
        rows = read_rows(file)
        if not rows:
            self.empty.append(f"{file} is empty: it has no rows.")
        for number in range(len(rows)):
            try:
                yield self._check(rows, number, f"{name}[{number}]")
            except BadRow as error:
                if not self.skip:
                    raise
                self.bad.append(error)

    def _check(self, rows: Sequence[object], number: int, place: str) -> Row:
        """The row with this number, if a run can use it. Raises BadRow."""
        raw = rows[number]
        if isinstance(raw, Unreadable):
            raise BadRow(place, str(raw))
        row = self.format.parse_row(raw, place)
        for where, text in texts(row):
            if escape := no_character(text):
                raise BadRow(row.name, f"{where} holds {escape}: half of a character, or a byte that is no UTF-8.")
        try:
            for path in row.paths:
                self.store.find(path)
        except ImageProblem as error:
            raise BadRow(row.name, str(error)) from error
        if self.format.images is not None:
            assert row.name == place, "what is looked up by its place has no name of its own"
            self._inside[place] = rows, number
        return row

    def _why_none(self, files: Sequence[str | os.PathLike[str]], split: str) -> str:
        if len(self.empty) == len(files):
            return " ".join(self.empty)
        reasons = [*self.empty, *(f"The first of {len(self.bad)} bad rows: {bad}" for bad in self.bad[:1])]
        none_left = f"{', '.join(map(str, files))}: no usable row in split {split} (val is a hundredth)."
        return " ".join([none_left, *reasons])

    def _note(self, error: BadRow) -> None:
        if self.report is not None:
            append_line(self.report, {"name": error.name, "reason": error.reason})


def short_names(files: Sequence[Path]) -> list[str]:
    """A short name of every file: its own, with as many of the folders above it as tell it from the others."""
    whole = [Path(os.path.abspath(file)).parts for file in files]

    def shortest(parts: tuple[str, ...]) -> str:
        others = set(whole) - {parts}
        return str(Path(*next(parts[-n:] for n in count(1) if all(o[-n:] != parts[-n:] for o in others))))

    return [shortest(parts) for parts in whole]


def in_split(name: str, split: Literal["train", "val", "all"]) -> bool:
    """val is a hundredth of the rows, by a hash of their names."""
    return split == "all" or (hashlib.sha256(name.encode()).digest()[0] * 100 < 256) == (split == "val")


def passes(parse_row: Callable[[object, str], Row], row: object, name: str) -> None:
    """Raises BadRow, under an example's own name, for a row made of it that could not be read again."""
    try:
        parse_row(row, name)
    except BadRow as error:
        raise BadRow(name, error.reason) from error


def check_dataset_name(dataset: str) -> None:
    """Raises ValueError for a name that is no plain file name."""
    if not re.fullmatch(r"[\w.-]+", dataset) or dataset.startswith("."):
        raise ValueError(f"The dataset name {dataset!r} has to consist of letters, digits, '_', '-' and '.'.")


def write_dataset(
    examples: Iterable[Example],
    folder: str | os.PathLike[str],
    dataset: str,
    row: Callable[[Example, int, Callable[[Image.Image], str]], object],
    parse_row: Callable[[object, str], Row],
) -> Path:
    """Writes examples as a subset: folder/dataset/train.json and images.zip; returns the JSON file.

    row: the example, its number, and a function that stores an image and returns its path → a row of JSON. parse_row:
    the format's, which every row has to pass. Raises BadRow, and ValueError for a dataset name that is no plain file
    name; then nothing is written.
    """
    check_dataset_name(dataset)
    target = Path(folder) / dataset

    def fill(draft: Path) -> None:
        with zipfile.ZipFile(draft / ZIP, "w") as archive:

            def put(image: Image.Image) -> str:
                data = io.BytesIO()
                image.save(data, "PNG")
                path = f"images/{len(archive.namelist()):07}.png"
                archive.writestr(path, data.getvalue())
                return f"{dataset}/{path}"

            rows = []
            for number, example in enumerate(examples):
                rows.append(row(example, number, put))
                passes(parse_row, rows[-1], example.name)
        (draft / "train.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")

    write_folder(target, fill)
    return target / "train.json"
