"""Files of rows: which row an image belongs to."""

import base64
import io
import os
from pathlib import Path

import datasets
import pytest
from PIL import Image

from trainers.data.formats import FORMATS
from trainers.data.rows import PublishedDataset, read_rows, short_names

COLOURS = ("red", "lime", "blue", "white")


def picture(colour: str) -> str:
    data = io.BytesIO()
    Image.new("RGB", (30, 30), colour).save(data, "PNG")
    return base64.b64encode(data.getvalue()).decode()


def shard(file: Path, colours: tuple[str, ...]) -> Path:
    """A file of Thyme's format, whose rows ask for the colour that their image has."""
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"images": [picture(colour)], "question": "Which colour?", "solution": colour} for colour in colours]
    datasets.Dataset.from_list(rows).to_parquet(file)
    return file


def agree(data: PublishedDataset) -> bool:
    """Whether all rows have the image that their answer is about."""
    pairs = [(data.example(row), row.answer) for row in data.rows]
    return all(
        example.images[0].tobytes() == Image.new("RGB", (30, 30), colour).tobytes() for example, colour in pairs
    )


@pytest.mark.parametrize(
    "names",
    [
        ("one/train.parquet", "two/train.parquet"),
        ("a/train/0.parquet", "b/train/0.parquet", "0.parquet"),
        ("train.parquet", "old/train.parquet", "old/old/train.parquet"),
        ("train1.parquet", "train[1].parquet", "train*.parquet"),
    ],
)
def test_every_row_has_its_own_image(names, tmp_path):
    files = [shard(tmp_path / name, COLOURS[n:] + COLOURS[:n]) for n, name in enumerate(names)]
    data = PublishedDataset(files, tmp_path, FORMATS["thyme"])
    assert len(data) == 4 * len(files) and agree(data)
    assert len({row.name for row in data.rows}) == len(data)  # whoever is told of a row can find it
    assert {example.answer for example, _ in data} == set(COLOURS)


def test_files_are_told_apart_wherever_they_are_named_from(tmp_path, monkeypatch):
    shard(tmp_path / "one/train.parquet", COLOURS[:2])
    shard(tmp_path / "two/train.parquet", COLOURS[2:])
    monkeypatch.chdir(tmp_path / "one")
    files = ["train.parquet", "../two/train.parquet", "../one/train.parquet"]
    data = PublishedDataset(files, tmp_path, FORMATS["thyme"])
    assert agree(data) and [row.answer for row in data.rows] == [*COLOURS, *COLOURS[:2]]
    assert {row.name.partition("[")[0] for row in data.rows} == {"one/train.parquet", "two/train.parquet"}


def test_a_file_that_replaces_another_of_the_same_age_is_read(tmp_path):
    file = shard(tmp_path / "train.parquet", COLOURS[:2])
    os.utime(file, (1e9, 1e9))
    assert [row["solution"] for row in read_rows(file)] == ["red", "lime"]
    shard(file, COLOURS[1:])
    os.utime(file, (1e9, 1e9))
    assert [row["solution"] for row in read_rows(file)] == ["lime", "blue", "white"]


def test_names_are_no_longer_than_it_takes():
    assert short_names([Path("a/x.json"), Path("b/y.json")]) == ["x.json", "y.json"]
    assert short_names([Path("a/x.json"), Path("b/x.json"), Path("y")]) == ["a/x.json", "b/x.json", "y"]
    assert short_names([Path("/d/e/x"), Path("/x"), Path("/e/x")]) == ["d/e/x", "/x", "/e/x"]
    assert short_names([Path("a/x"), Path("./a/x"), Path("b/../a/x")]) == ["x", "x", "x"]
