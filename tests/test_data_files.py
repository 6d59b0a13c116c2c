"""Files of rows: which row an image belongs to, where a row of JSON ends, what is said of what cannot be read."""

import base64
import io
import json
import os
import shutil
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from trainers.__main__ import main
from trainers.data.files import read_rows
from trainers.data.formats import FORMATS
from trainers.data.rows import BadRow, PublishedDataset, short_names

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


ASKED = ("one\u2028and", "two\u2029and", "three\x85and", "four\x1eand \x0b\x0c", "fünf 🙂")
ROWS = [{"question": text, "answer": "a", "image": ["a.png"], "qid": n} for n, text in enumerate(ASKED)]
LINES = [json.dumps(row, ensure_ascii=False) for row in ROWS]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("lines.jsonl", "\n".join(LINES)),
        ("windows.jsonl", "\r\n".join(LINES) + "\r\n"),
        ("mac.jsonl", "\r".join(LINES)),
        ("blank.jsonl", "\n\n  \n".join(LINES) + "\n\r\n"),
        ("lines.json", "\n".join(LINES) + "\n"),
        ("list.json", "[" + ", ".join(LINES) + "]"),
        ("list.jsonl", "[" + ",\n".join(LINES) + "]\n"),
        ("indented.json", json.dumps(ROWS, indent=2, ensure_ascii=False)),
        ("indented.jsonl", json.dumps(ROWS, indent=2, ensure_ascii=False)),
        ("objects.jsonl", "\n".join(json.dumps(row, indent=2, ensure_ascii=False) for row in ROWS)),
        ("two lists.json", f"[{', '.join(LINES[:2])}]\n[{', '.join(LINES[2:])}]"),
        ("strung together.jsonl", "\ufeff" + "\n".join(LINES[:2]) + "\n\ufeff" + "\n".join(LINES[2:])),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32-le"])
def test_json_is_read_however_it_is_laid_out(name, text, encoding, tmp_path):
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert read_rows(tmp_path / name) == ROWS


def test_a_single_object_over_several_lines_is_a_row(tmp_path):
    for name in ("one.json", "one.jsonl"):
        (tmp_path / name).write_text(json.dumps(ROWS[0], indent=1))
        assert read_rows(tmp_path / name) == ROWS[:1]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\n".join([*LINES[:3], LINES[3][:-9], LINES[4]]), 4),
        ("\r\n".join([*LINES[:3], LINES[3][:-9], LINES[4]]), 4),
        ("\ufeff" + "\n\n".join([*LINES[:3], "{broken}", LINES[4]]), 7),
        ("\n".join(["{broken", *LINES]), 1),
        ("\n".join([*LINES, LINES[0][:40]]), 6),
        ("\n".join([LINES[0], f"{LINES[1]},", *LINES[2:]]), 2),
        ("\n".join([*LINES, '{"question": %s}' % ("9" * 5000), LINES[0]]), 6),
        ("\n".join([*LINES, "[" * 100_000, LINES[0]]), 6),
        ("\n".join([LINES[0], '{"question": "a\x0bb"}', LINES[0]]), 2),
    ],
)
def test_a_broken_line_is_a_bad_row_with_its_real_number(text, line, tmp_path, capsys):
    Image.new("RGB", (30, 30)).save(tmp_path / "a.png")
    file = tmp_path / "rows.jsonl"
    file.write_text(text, encoding="utf-8", newline="")
    with pytest.raises(BadRow, match=rf"^Row rows.jsonl\[\d\]: line {line} is not valid JSON: "):
        PublishedDataset([file], tmp_path, FORMATS["virl"])
    assert main(["data", "check", str(file), "--root", str(tmp_path), "--format", "virl", "--on-bad-row", "skip"]) == 0
    out = capsys.readouterr().out
    assert f": line {line} is not valid JSON" in out and "rows can be used, 1 cannot" in out


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[\n{},\n{]", "not valid JSON: Expecting property name enclosed in double quotes: line 3 column 2"),
        (json.dumps(ROWS, indent=2)[:-20], "not valid JSON: .* line 39 column 6"),
        (json.dumps(ROWS[0], indent=2).replace('"a"', "'a'"), "not valid JSON: Expecting value: line 3 column 13"),
        ("question,answer\nWhat?,this", "not valid JSON: Expecting value: line 1"),
        ("\n\n  [1, 2", "not valid JSON: .* line 3"),
        ("[" * 100_000, "not valid JSON: "),
        (b"\x89PNG\r\n\x1a\n", "no text in UTF-8"),
        (b"\xff\xfe[\x00", "not valid JSON|no text"),
    ],
)
def test_a_file_that_is_no_json_is_refused_with_its_line(text, words, tmp_path):
    file = tmp_path / "rows.json"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"rows\.json is ({words})"):
        PublishedDataset([file], tmp_path, FORMATS["virl"], on_bad_row="skip")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl", "rows.parquet", "rows.PARQUET"])
def test_a_file_without_rows_is_called_empty(name, tmp_path, capsys):
    file, full = tmp_path / name, shard(tmp_path / "full.parquet", COLOURS)
    if file.suffix.lower() == ".parquet":
        pyarrow.parquet.write_table(pyarrow.parquet.read_table(full).slice(0, 0), file)
    else:
        file.write_text("[]" if name == "rows.json" else "\n")
    for policy in ("error", "skip"):
        given = ["--root", str(tmp_path), "--format", "thyme", "--on-bad-row", policy]
        assert main(["data", "check", str(file), *given]) == 2
        assert capsys.readouterr().err == f"error: {file} is empty: it has no rows.\n"
        assert main(["data", "check", str(file), str(full), *given]) == 0
        assert capsys.readouterr().out.startswith(f"{file} is empty: it has no rows.\nthyme: 4 rows\n")


def test_parquet_is_read_as_plain_values(tmp_path):
    file = shard(tmp_path / "rows.parquet", COLOURS[:2])
    table = pyarrow.parquet.read_table(file)
    wanted = table.to_pylist()
    strange = ({"question": {"_type": "Evil"}}, {"question": 3}, {"question": {"dtype": "int64", "_type": "Value"}})
    for number, metadata in enumerate(
        [b"nonsense", *(json.dumps({"info": {"features": f}}).encode() for f in strange)]
    ):
        again = tmp_path / f"{number}.parquet"
        pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": metadata}), again)
        assert list(read_rows(again)) == wanted
    shutil.copy(file, tmp_path / "x.JSON")
    with pytest.raises(ValueError, match=r"x\.JSON is no text|x\.JSON is not valid JSON"):
        read_rows(tmp_path / "x.JSON")
    with pytest.raises(ValueError, match=r"none\.parquet cannot be read: "):
        read_rows(tmp_path / "none.parquet")
    damaged = bytearray(file.read_bytes())
    damaged[4:200] = bytes(196)
    (tmp_path / "damaged.parquet").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"damaged\.parquet is no Parquet file"):
        read_rows(tmp_path / "damaged.parquet")


def test_bytes_that_are_no_text_are_bad_rows_of_parquet(tmp_path):
    question = pyarrow.array([b"fine", b"\xed\xa0\xbd", b"caf\xe9", b"good"]).view(pyarrow.string())
    columns = {"images": [[picture("red")]] * 4, "question": question, "solution": ["red"] * 4}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(BadRow, match=r"Row rows.parquet\[1\]: a text holds the byte 0xed, which is no UTF-8"):
        PublishedDataset([tmp_path / "rows.parquet"], tmp_path, FORMATS["thyme"])
    data = PublishedDataset([tmp_path / "rows.parquet"], tmp_path, FORMATS["thyme"], on_bad_row="skip")
    assert [bad.name for bad in data.bad] == ["rows.parquet[1]", "rows.parquet[2]"]
    assert [row.question for row in data.rows] == ["fine", "good"] and agree(data)
