"""Monet-SFT-125K's own format, read, checked and written.

A file is a JSON list (or one object a line) of

    {"metadata": {"dataset_name", "sample_id"}, "data": [system, user, assistant]}

where a turn is `{"role", "content": [{"type": "text", "text"} | {"type": "image", "image": relative path}]}`. The text
before every assistant image ends in `<abs_vis_token></abs_vis_token>`, which marks a latent step; what `<observation>…
</observation>` encloses after it is what the step has to make visible. Images lie below the root folder, or in the
`images.zip` of their subset, which is read as it is.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from latent_core import answers, glyphs
from latent_core.example import Example, LatentStep, Step, TextSpan
from trainers.data.rows import BadRow, Format, field, write_dataset
from trainers.data.segments import segments

MARK = "<abs_vis_token></abs_vis_token>"
TAIL = "\nPut your final answer within \\boxed{}."
"""Ends the questions, except those of the subset below; as released, it is taken off."""
KEEPS_TAIL = "Zebra_CoT_count"
SYSTEM = "You are a helpful assistant."
_OBSERVATION = re.compile(r"<observation>(.*?)</observation>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class MonetRow:
    """A checked row; its images are paths."""

    name: str
    """`dataset_name/sample_id`."""
    dataset: str
    images: tuple[str, ...]
    """Of the question."""
    question: str
    parts: tuple[TextSpan | str, ...]
    """The response word for word; a text that is no TextSpan is the path of a latent step's image."""

    @property
    def paths(self) -> tuple[str, ...]:
        """All images, the question's first."""
        return (*self.images, *(part for part in self.parts if isinstance(part, str)))


def parse_row(row: object, place: str) -> MonetRow:
    """Checks a row without opening its images; `place` names it where it does not name itself.

    Raises BadRow for a wrong type, wrong roles, no question image, images and marks that do not match, and for a
    response that observes nothing after its first latent step.
    """
    metadata, data = (field(row, key, kind, place) for key, kind in (("metadata", dict), ("data", list)))
    dataset, number = metadata.get("dataset_name"), metadata.get("sample_id")
    if not isinstance(dataset, str) or not isinstance(number, (str, int)):
        raise BadRow(place, "metadata needs a dataset_name and a sample_id.")
    name = f"{dataset}/{number}"
    roles = [turn.get("role") if isinstance(turn, dict) else None for turn in data]
    if roles != ["system", "user", "assistant"]:
        raise BadRow(name, f"the roles are {roles}; they have to be system, user, assistant.")
    _, user, assistant = (_content(turn, name) for turn in data)
    images = tuple(value for kind, value in user if kind == "image")
    if not images:
        raise BadRow(name, "the user's turn has no image.")
    if [kind for kind, _ in user[: len(images)]] != ["image"] * len(images):
        raise BadRow(name, "the user's images have to stand before the question.")
    question = "".join(value for kind, value in user if kind == "text").replace(MARK, "")
    if KEEPS_TAIL not in images[0]:
        question = question.removesuffix(TAIL)
    if not question.strip():
        raise BadRow(name, "the question is empty.")
    return MonetRow(name, dataset, images, question, tuple(_parts(assistant, name)))


def _content(turn: dict[str, object], name: str) -> list[tuple[str, str]]:
    """(type, text or path) of a turn's items."""
    items = field(turn, "content", list, name)
    content = []
    for item in items:
        kind = item.get("type") if isinstance(item, dict) else None
        value = item.get(kind) if kind in ("text", "image") else None
        if not isinstance(value, str):
            raise BadRow(
                name, f"the {turn['role']}'s content holds {str(item)[:60]!r}, which is no text and no image."
            )
        content.append((kind, value))
    return content


def _parts(items: list[tuple[str, str]], name: str) -> Iterator[TextSpan | str]:
    """An assistant turn as texts and the images of latent steps."""
    images = sum(kind == "image" for kind, _ in items)
    marks = sum(value.count(MARK) for kind, value in items if kind == "text")
    if images != marks:
        raise BadRow(name, f"{images} images stand beside {marks} marks {MARK}; each image needs one before it.")
    if not images:
        raise BadRow(name, "the assistant's turn has no image, so there is no thought to learn.")
    texts: list[str] = []
    last = ""
    for kind, value in items:
        if kind == "image":
            if not last.endswith(MARK):
                raise BadRow(name, f"the text before {value} does not end in {MARK}.")
            texts[-1] = texts[-1].removesuffix(MARK)
        else:
            if last.endswith(MARK):
                raise BadRow(name, f"no image follows after {last[-60:]!r}.")
            texts.append(value)
        last = value if kind == "text" else ""
    # what is observed before there was anything to see is plain text, as in the released training
    first = next(i for i, (kind, _) in enumerate(items) if kind == "image")
    if not any(_OBSERVATION.search(value) for kind, value in items[first:] if kind == "text"):
        raise BadRow(name, "no <observation> follows the first image.")
    boxed = max((i for i, text in enumerate(texts) if "\\boxed" in text), default=-1)
    number = 0
    for index, (kind, value) in enumerate(items):
        if kind == "image":
            yield value
            continue
        pieces = _OBSERVATION.split(texts[number])
        if index < first:
            pieces = ["".join(pieces)]
        final = max((i for i in range(0, len(pieces), 2) if "\\boxed" in pieces[i]), default=-1)
        for i, piece in enumerate(pieces):
            if piece:
                answer = number == boxed and i == final
                yield TextSpan(piece, "observation" if i % 2 else "answer" if answer else "text")
        number += 1


def to_example(row: MonetRow, images: Sequence[Image.Image]) -> Example:
    """The row with its images, in the order of `row.paths`."""
    count = len(row.images)
    auxiliary = iter(images[count:])
    parts: list[TextSpan | LatentStep] = []
    texts = _around(row.parts)
    for part in row.parts:
        if isinstance(part, TextSpan):
            parts.append(part)
        else:
            text, observation = next(texts)
            parts.append(LatentStep(Step(text=text, observation=observation, image=next(auxiliary), region=None)))
    response = "".join(part.text for part in parts if isinstance(part, TextSpan))
    return Example(
        images=tuple(images[:count]),
        question=row.question,
        steps=tuple(part.step for part in parts if isinstance(part, LatentStep)),
        answer=answers.extract(response) or "",
        name=row.name,
        metadata={"family": row.dataset},
        parts=tuple(parts),
    )


def _around(parts: Sequence[TextSpan | str]) -> Iterator[tuple[str, str]]:
    """Per latent step, the text before it since the last one and the observations after it up to the next one."""
    places = [i for i, part in enumerate(parts) if isinstance(part, str)]
    for number, place in enumerate(places):
        start = places[number - 1] + 1 if number else 0
        end = places[number + 1] if number + 1 < len(places) else len(parts)
        before = [part.text for part in parts[start:place] if part.role != "observation"]
        after = [part.text for part in parts[place + 1 : end] if part.role == "observation"]
        yield "".join(before).strip(), "".join(after).strip()


def write_rows(examples: Iterable[Example], folder: str | os.PathLike[str], dataset: str) -> Path:
    """Writes examples as a subset: folder/dataset/train.json and images.zip. Returns the JSON file.

    Raises ValueError for a dataset name that is no plain file name and BadRow for an example without latent steps or
    with one that has no image.
    """
    return write_dataset(examples, folder, dataset, partial(_row, dataset), parse_row)


def _row(dataset: str, example: Example, number: int, store: Callable[[Image.Image], str]) -> dict[str, object]:
    def put(image: Image.Image) -> dict[str, str]:
        return {"type": "image", "image": store(image)}

    user = [*map(put, example.images), {"type": "text", "text": example.question + TAIL}]
    assistant: list[dict[str, str]] = []
    for part in segments(example):
        text = MARK
        if isinstance(part, TextSpan):
            text = f"<observation>{part.text}</observation>" if part.role == "observation" else part.text
        elif part.step.image is None:
            raise BadRow(example.name, "a thought has no image, which the format needs.")
        if assistant and assistant[-1]["type"] == "text":
            assistant[-1]["text"] += text
        else:
            assistant.append({"type": "text", "text": text})
        if isinstance(part, LatentStep):
            assistant.append(put(part.step.image))
    if not example.steps:
        raise BadRow(example.name, "it has no thoughts, which the format needs.")
    turns = (("system", [{"type": "text", "text": SYSTEM}]), ("user", user), ("assistant", assistant))
    return {
        "metadata": {"dataset_name": dataset, "sample_id": number},
        "data": [{"role": role, "content": content} for role, content in turns],
    }


FORMAT = Format(parse_row, to_example, write_rows, families=(*glyphs.FAMILIES, "views"))
