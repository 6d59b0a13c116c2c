"""ViRL39K's format, read, checked and written: questions and answers without reasoning, for reinforcement learning.

    {"question": "<image>…", "answer": "\\boxed{…}", "image": [path, …], "qid", "category", …}

or, as LVR's authors converted it, with the answer in `<answer>`:

    {"image": path | [path, …], "conversations": [{"from": "human" | "gpt", "value"}, …]}

Marks `<image>` and newlines around them go: images stand before the question. A row whose answer says nothing
(`\\boxed{}`) cannot be used.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from latent_core import answers
from latent_core.example import Example
from trainers.data.rows import IMAGE, BadRow, Format, exchange, field, image_paths, without_marks, write_dataset


@dataclass(frozen=True, slots=True)
class QuestionRow:
    """A checked question with its answer; its images are paths."""

    name: str
    dataset: str
    """Its category, where it has one."""
    paths: tuple[str, ...]
    question: str
    answer: str


def parse_row(row: object, place: str) -> QuestionRow:
    """Checks a row without opening its images; `place` names it where it does not name itself.

    Raises BadRow for a wrong type, for images and marks that do not match, and for an empty question or answer.
    """
    if isinstance(row, dict) and "conversations" in row:
        question, answer = exchange(row, place)
    else:
        question, answer = (field(row, key, str, place) for key in ("question", "answer"))
    number = row.get("qid", row.get("question_id"))
    name = f"virl/{number}" if isinstance(number, (str, int)) else place
    images = image_paths(row, name)
    if question.count(IMAGE) not in (0, len(images)):
        raise BadRow(name, f"{len(images)} images stand beside {question.count(IMAGE)} marks {IMAGE}.")
    category = row.get("category")
    dataset = category if isinstance(category, str) and category else "virl"
    return QuestionRow(name, dataset, images, *checked(question, answer, name))


def checked(question: str, answer: str, name: str) -> tuple[str, str]:
    """Question and answer without marks.

    Raises BadRow where one of them is empty: an answer of space, wrapping and punctuation alone (`\\boxed{}`,
    `\\boxed{\\text{}}`, `<answer></answer>`) says nothing, and what was cut off within its box or tags neither.
    """
    question = without_marks(question).strip()
    if not question:
        raise BadRow(name, "the question is empty.")
    truth = answers.truth(answer)
    if truth is None:
        raise BadRow(name, f"the answer is empty or cut off: {answer.strip()[:60]!r} says nothing to compare with.")
    return question, truth


def to_example(row: QuestionRow, images: Sequence[Image.Image]) -> Example:
    """The row with its images, in the order of `row.paths`; it has no steps."""
    return Example(
        images=tuple(images),
        question=row.question,
        steps=(),
        answer=row.answer,
        name=row.name,
        metadata={"family": row.dataset},
    )


def write_rows(examples: Iterable[Example], folder: str | os.PathLike[str], dataset: str) -> Path:
    """Writes examples as folder/dataset/train.json and images.zip; returns the JSON file.

    Raises ValueError for a dataset name that is no plain file name.
    """
    return write_dataset(examples, folder, dataset, partial(_row, dataset), parse_row)


def _row(dataset: str, example: Example, number: int, put: Callable[[Image.Image], str]) -> dict[str, object]:
    return {
        "question": IMAGE * len(example.images) + example.question,
        "answer": f"\\boxed{{{example.answer}}}",
        "image": [put(image) for image in example.images],
        "qid": f"{dataset}-{number}",
        "category": str(example.metadata.get("family", dataset)),
        "source": dataset,
    }


FORMAT = Format(parse_row, to_example, write_rows, reasoning=False)
