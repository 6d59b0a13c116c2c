"""LVR's own format, read, checked and written: LLaVA-style rows with boxes.

    {"dataset", "question_id", "image": [path], "conversations": [{"from": "human" | "gpt", "value"}, …],
     "bboxes": [[x0, y0, x1, y1], …]}

`<image>` in the human's turn stands for an image, `<lvr>` in the answer for a latent step; the k-th is about the k-th
box, in shares of the image. As in the released code, newlines around `<image>` go, and so does what stands before the
first `<lvr>` of an answer. Only the first question and answer of a row are read.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from latent_core import answers
from latent_core.example import Box, Example, LatentStep, Step, TextSpan
from trainers.data.rows import (
    IMAGE,
    BadRow,
    Format,
    exchange,
    field,
    image_paths,
    without_marks,
    write_dataset,
)
from trainers.data.segments import segments

MARK = "<lvr>"


@dataclass(frozen=True, slots=True)
class LvrRow:
    """A checked row; its images are paths."""

    name: str
    """`dataset/question_id`."""
    dataset: str
    paths: tuple[str, ...]
    question: str
    parts: tuple[TextSpan | Box, ...]
    """The response word for word; what is no TextSpan is a latent step's box."""


def parse_row(row: object, place: str) -> LvrRow:
    """Checks a row without opening its images; `place` names it where it does not name itself.

    Raises BadRow for a wrong type, for turns other than one question and one answer, for images, marks and boxes that
    do not match, and for boxes that leave the image or are empty.
    """
    dataset = field(row, "dataset", str, place)
    number = row.get("question_id")
    if not isinstance(number, (str, int)):
        raise BadRow(place, "question_id is missing.")
    name = f"{dataset}/{number}"
    images = image_paths(row, name)
    prompt, response = exchange(row, name)
    if prompt.count(IMAGE) != len(images):
        raise BadRow(name, f"{len(images)} images stand beside {prompt.count(IMAGE)} marks {IMAGE}.")
    question = without_marks(prompt)
    if not question.strip():
        raise BadRow(name, "the question is empty.")
    boxes = row.get("bboxes") or []
    if not isinstance(boxes, list):
        raise BadRow(name, f"bboxes is {type(boxes).__name__}; it has to be a list.")
    if response.count(MARK) != len(boxes):
        raise BadRow(name, f"{len(boxes)} boxes stand beside {response.count(MARK)} marks {MARK} in the answer.")
    if boxes and len(images) > 1:
        raise BadRow(name, f"it has {len(images)} images; which one a box lies on cannot be told. Give it one.")
    checked = [_box(box, name) for box in boxes]
    if checked:
        response = response[response.index(MARK) :]
    parts: list[TextSpan | Box] = []
    for index, text in enumerate(response.split(MARK)):
        if index:
            parts.append(checked[index - 1])
        if text:
            parts.append(TextSpan(text, "answer" if "<answer>" in text else "text"))
    return LvrRow(name, dataset, images, question, tuple(parts))


def _box(box: object, name: str) -> Box:
    numbers = isinstance(box, list) and len(box) == 4 and all(type(edge) in (int, float) for edge in box)
    if not numbers:
        raise BadRow(name, f"{str(box)[:60]} is no box; [x0, y0, x1, y1] is needed.")
    x0, y0, x1, y1 = box
    if not (0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1):
        raise BadRow(
            name, f"the box {box} is empty or leaves the image; 0 ≤ x0 < x1 ≤ 1 and 0 ≤ y0 < y1 ≤ 1 must hold."
        )
    return x0, y0, x1, y1


def to_example(row: LvrRow, images: Sequence[Image.Image]) -> Example:
    """The row with its images, in the order of `row.paths`."""
    parts = tuple(
        part if isinstance(part, TextSpan) else LatentStep(Step(text="", observation="", region=part))
        for part in row.parts
    )
    response = "".join(part.text for part in parts if isinstance(part, TextSpan))
    return Example(
        images=tuple(images),
        question=row.question,
        steps=tuple(part.step for part in parts if isinstance(part, LatentStep)),
        answer=answers.extract(response) or "",
        name=row.name,
        metadata={"family": row.dataset},
        parts=parts,
    )


def write_rows(examples: Iterable[Example], folder: str | os.PathLike[str], dataset: str) -> Path:
    """Writes examples as folder/dataset/train.json and images.zip; returns the JSON file.

    Latent steps come first, as the format has it, each with the box that it is about; the answer follows in
    `<answer>`. Raises ValueError for a dataset name that is no plain file name, and BadRow for a latent step without a
    box and for one about several images.
    """
    return write_dataset(examples, folder, dataset, partial(_row, dataset), parse_row)


def _row(dataset: str, example: Example, number: int, put: Callable[[Image.Image], str]) -> dict[str, object]:
    paths = [put(image) for image in example.images]
    boxes = [part.step.region for part in segments(example) if isinstance(part, LatentStep)]
    if not all(boxes):
        raise BadRow(example.name, "a thought looks at no box, which the format needs.")
    turns = {
        "human": f"{IMAGE}\n" * len(paths) + example.question,
        "gpt": f"{MARK * len(boxes)}\n<answer> {example.answer} </answer>",
    }
    return {
        "dataset": dataset,
        "question_id": number,
        "image": paths,
        "conversations": [{"from": who, "value": value} for who, value in turns.items()],
        "bboxes": [list(box) for box in boxes],
    }


FORMAT = Format(parse_row, to_example, write_rows, families=("find", "relate", "trace", "list"))
