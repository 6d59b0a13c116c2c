"""Thyme-RL's format, read, checked and written: questions and answers whose images lie within the rows, in base64.

    {"images": ["data:image/png;base64,…" | "…"], "question": "…", "solution": "…"}

The published files are Parquet. Rows keep no pixels: an image is read from the file when it is needed.
"""

import base64
import binascii
import io
import os
import re
from collections.abc import Iterable
from pathlib import Path

from datasets import Dataset

from latent_core.example import Example
from latent_core.files import write_folder
from latent_core.model.images import ImageProblem
from trainers.data.rows import BadRow, Format, check_dataset_name, field, passes
from trainers.data.virl import QuestionRow, checked, to_example

_HEAD = re.compile(r"data:[^,]*;base64,", re.IGNORECASE)


def parse_row(row: object, place: str) -> QuestionRow:
    """Checks a row without decoding its images. Raises BadRow for a wrong type and an empty question or answer."""
    images = field(row, "images", list, place)
    if not images or not all(isinstance(image, str) for image in images):
        raise BadRow(place, "images has to list one or more images in base64.")
    question, answer = (field(row, key, str, place) for key in ("question", "solution"))
    return QuestionRow(place, "thyme", (), *checked(question, answer, place))


def images(row: dict[str, object]) -> list[bytes]:
    """The files of a row's images; white space and the head of a data URI do not count. Raises ImageProblem."""
    files = []
    for text in row["images"]:
        try:
            files.append(base64.b64decode(_HEAD.sub("", "".join(text.split()), count=1), validate=True))
        except (binascii.Error, ValueError) as error:
            raise ImageProblem(f"an image is no base64: {error}.") from error
    return files


def write_rows(examples: Iterable[Example], folder: str | os.PathLike[str], dataset: str) -> Path:
    """Writes examples as folder/dataset/train.parquet; returns that file.

    Raises ValueError for a dataset name that is no plain file name.
    """
    check_dataset_name(dataset)

    def fill(draft: Path) -> None:
        rows = []
        for example in examples:
            encoded = []
            for image in example.images:
                data = io.BytesIO()
                image.save(data, "PNG")
                encoded.append(base64.b64encode(data.getvalue()).decode())
            rows.append({"images": encoded, "question": example.question, "solution": example.answer})
            passes(parse_row, rows[-1], example.name)
        Dataset.from_list(rows).to_parquet(draft / "train.parquet")

    target = Path(folder) / dataset
    write_folder(target, fill)
    return target / "train.parquet"


FORMAT = Format(parse_row, to_example, write_rows, images, reasoning=False)
