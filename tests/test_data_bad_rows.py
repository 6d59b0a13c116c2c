"""Rows that nothing can be learned from: named by the check and by a run alike, and skipped by both."""

import base64
import copy
import io
import json
import zipfile
from pathlib import Path

import datasets
import pytest
from PIL import Image, features

from latent_core import glyphs
from latent_core.checkpoints.embedded import EMBEDDED
from trainers.__main__ import main
from trainers.data.formats import FORMATS
from trainers.data.rows import BadRow, PublishedDataset
from trainers.loop.launch import train
from trainers.recipe import load_recipe


def png(image: Image.Image, format: str = "PNG") -> bytes:
    data = io.BytesIO()
    image.save(data, format)
    return data.getvalue()


EXAMPLE = glyphs.sample("find", 0, "train")
INSIDE = base64.b64encode(png(EXAMPLE.images[0])).decode()
JPEG = base64.b64encode(png(EXAMPLE.images[0], "JPEG")).decode()
GOOD = {
    "dataset": "glyphs",
    "question_id": "good",
    "image": ["i/a.png"],
    "conversations": [
        {"from": "human", "value": f"<image>\n{EXAMPLE.question}"},
        {"from": "gpt", "value": f"<lvr>\n<answer> {EXAMPLE.answer} </answer>"},
    ],
    "bboxes": [list(EXAMPLE.steps[0].region)],
}
"""Of LVR's format."""


def made(**changes: object) -> dict:
    """The good row with changes: of fields, and of what is `asked` and `said`."""
    row = copy.deepcopy(GOOD)
    for turn, name in enumerate(("asked", "said")):
        row["conversations"][turn]["value"] = changes.pop(name, row["conversations"][turn]["value"])
    return row | changes


LONE = r"holds \\u[0-9a-f]{4}: half of a character"
BAD = {
    "no-image": (made(image=["i/none.png"]), "the image i/none.png is missing"),
    "undecodable": (made(image=["i/text.png"]), "text.png is not an image"),
    "damaged": (made(image=["i/cut.png"]), r"cut.png is damaged"),
    "high": (made(asked="<image>\n\ud83d what?"), LONE),
    "low": (made(asked="<image>\nwhat\ude42?"), LONE),
    "said": (made(said="<lvr>\n<answer> tee\udfff </answer>"), LONE),
    "reversed": (made(said="<lvr>\ude42\ud83d<answer> tee </answer>"), LONE),
    "path": (made(image=["i/a\ud83d.png"]), LONE),
    "dataset": (made(dataset="gly\ud83dphs"), LONE),
    "bytes": (made(asked="<image>\ncaf\udce9?"), LONE),
    "base64": (made(image=[INSIDE]), r"'iVBORw0KGgo.{69}… \([\d,]+ characters\).* thyme"),
    "jpeg": (made(image=[JPEG]), r"'/9j/.{76}… \([\d,]+ characters\).* thyme"),
    "lines": (made(image=["\n".join([INSIDE[:76], INSIDE[76:]])]), r"characters\).* thyme"),
    "uri": (made(image=[f"data:image/png;base64,{INSIDE}"]), r"characters\).* thyme"),
    "short": (made(image=["data:image/gif;base64,R0lG"]), "R0lG is missing.* thyme"),
    "name": (made(image=["x" * 300]), "File name too long|is missing"),
    "encrypted": (made(image=["encrypted/a.png"]), r"encrypted/images.zip: .* password"),
    "strong": (made(image=["strong/a.png"]), r"strong/images.zip: .*encryption"),
    "deflate64": (made(image=["deflate64/a.png"]), r"deflate64/images.zip: That compression method"),
    "unknown": (made(image=["unknown/a.png"]), r"unknown/images.zip: That compression method"),
    "crc": (made(image=["crc/a.png"]), r"crc/images.zip: Bad CRC"),
    "no-zip": (made(image=["no-zip/a.png"]), r"no-zip/images.zip is no zip file"),
    "absolute": (made(image=["C:\\i\\a.png"]), "does not stay in the data folder"),
    "share": (made(image=["\\\\server\\i\\a.png"]), "does not stay in the data folder"),
    "up": (made(image=["i\\..\\..\\a.png"]), "does not stay in the data folder"),
    "link": (made(image=["i/link.png"]), "is a link that does not stay in the data folder"),
}
FINE = [
    made(question_id="windows", image=["i\\a.png"]),
    made(question_id="mixed", image=["zipped\\i/a.png"]),
    made(question_id="pair", asked="<image>\n\ud83d\ude42?".encode("utf-16", "surrogatepass").decode("utf-16")),
    made(question_id="elsewhere", comment="what nobody reads may hold \ud83d"),
]


def zipped(folder: Path, *, flags: int = 0, method: int | None = None, break_data: bool = False) -> None:
    """images.zip with a.png, its headers changed to what Python cannot write."""
    folder.mkdir()
    file = folder / "images.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.png", png(EXAMPLE.images[0]))
    data = bytearray(file.read_bytes())
    for header, start in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.find(header) + start
        data[at] |= flags
        data[at + 2] = data[at + 2] if method is None else method
    data[60] ^= break_data
    file.write_bytes(data)


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data") / "root"
    images = root / "i"
    images.mkdir(parents=True)
    (images / "a.png").write_bytes(png(EXAMPLE.images[0]))
    (images / "text.png").write_text("no picture")
    (images / "cut.png").write_bytes(png(EXAMPLE.images[0])[:200])
    (root.parent / "secret.png").write_bytes(png(EXAMPLE.images[0]))
    (images / "link.png").symlink_to(root.parent / "secret.png")
    zipped(root / "encrypted", flags=0x01)
    zipped(root / "strong", flags=0x40)
    zipped(root / "deflate64", method=9)
    zipped(root / "unknown", method=99)
    zipped(root / "crc", break_data=True)
    (root / "no-zip").mkdir()
    (root / "no-zip/images.zip").write_text("no zip")
    (root / "zipped").mkdir()
    with zipfile.ZipFile(root / "zipped/images.zip", "w") as archive:
        archive.writestr("i\\a.png", png(EXAMPLE.images[0]))  # as some programs of Windows name members
    return root


def written(root: Path, name: str, rows: list[dict]) -> Path:
    file = root / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def listed(lines: str) -> list[str]:
    """The names in a report of bad rows."""
    return [json.loads(line)["name"] for line in lines.splitlines()]


@pytest.mark.parametrize("kind", BAD)
def test_check_and_data_set_name_the_same_bad_row(kind, root, capsys, tmp_path):
    row, words = BAD[kind]
    file = written(root, kind, [made(question_id="first"), row | {"question_id": kind}, made(question_id="last")])
    name = f"{row['dataset']}/{kind}".encode("unicode_escape").decode()
    given = ["data", "check", str(file), "--root", str(root), "--format", "lvr", "--pixels"]
    assert main(given) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: Row {name}: ") and said.count("\n") == 1 and len(said) < 400
    assert main([*given, "--on-bad-row", "skip"]) == 0
    *_, left_out, last = capsys.readouterr().out.splitlines()
    assert left_out == f"left out: {said.removeprefix('error: ').rstrip()}"
    assert last == "2 rows can be used, 1 cannot."
    with pytest.raises(BadRow, match=words):
        list(PublishedDataset([file], root, FORMATS["lvr"]))
    report = tmp_path / "bad.jsonl"
    data = PublishedDataset([file], root, FORMATS["lvr"], on_bad_row="skip", size=6, report=report)
    assert {data[i][0].name for i in range(3)} == {"glyphs/first", "glyphs/last"}
    assert set(listed(report.read_text())) == {f"{row['dataset']}/{kind}"}


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow reads no AVIF")
def test_an_avif_that_cannot_be_decoded_is_a_bad_row_too(tmp_path):
    whole = png(EXAMPLE.images[0], "AVIF")
    main_item = whole.index(b"pitm") + len(b"pitm") + 4
    (tmp_path / "a.avif").write_bytes(whole[:main_item] + b"\0\7" + whole[main_item + 2 :])
    data = PublishedDataset([written(tmp_path, "rows", [made(image=["a.avif"])])], tmp_path, FORMATS["lvr"])
    with pytest.raises(BadRow, match="^Row glyphs/good: "):
        data[0]


def test_rows_that_only_look_strange_are_used(root):
    data = PublishedDataset([written(root, "fine", FINE)], root, FORMATS["lvr"])
    examples = [example for example, _ in data]
    assert len(examples) == len(FINE)
    assert all(example.images[0].tobytes() == EXAMPLE.images[0].tobytes() for example in examples)


def test_where_no_row_is_left_a_run_says_why(root):
    file = written(root, "none", [row for row, _ in list(BAD.values())[:1]])
    with pytest.raises(
        ValueError, match=r"no usable row .* The first of 1 bad rows: Row glyphs/good: the image i/none"
    ):
        PublishedDataset([file], root, FORMATS["lvr"], on_bad_row="skip")
    file = written(root, "pixels", [BAD["damaged"][0]])
    with pytest.raises(ValueError, match=r"the last one: Row glyphs/good: cut.png is damaged"):
        list(PublishedDataset([file], root, FORMATS["lvr"], on_bad_row="skip"))


HALF = "what\ud83d?"


@pytest.mark.parametrize(
    ("format", "way"),
    [
        ("virl", ["question"]),
        ("virl", ["answer"]),
        ("virl", ["qid"]),
        ("virl", ["category"]),
        ("virl", ["image", 0]),
        ("monet", ["metadata", "dataset_name"]),
        ("monet", ["metadata", "sample_id"]),
        ("monet", ["data", 1, "content", 0, "image"]),
        ("monet", ["data", 1, "content", 1, "text"]),
        ("monet", ["data", 2, "content", 1, "image"]),
        ("monet", ["data", 2, "content", 2, "text"]),
    ],
)
def test_half_a_character_is_found_in_every_text(format, way, tmp_path, capsys):
    file = FORMATS[format].write_rows([EXAMPLE, EXAMPLE], tmp_path, "glyphs")
    rows = json.loads(file.read_text())
    *parents, last = way
    part = rows[1]
    for step in parents:
        part = part[step]
    marked = isinstance(part[last], str) and "<" in part[last]
    part[last] = part[last].replace(" ", " \ud83d ") if marked else HALF
    file.write_text(json.dumps(rows))
    given = ["data", "check", str(file), "--root", str(tmp_path), "--format", format]
    assert main(given) == 2
    assert "holds \\ud83d: half of a character" in capsys.readouterr().err
    assert main([*given, "--on-bad-row", "skip"]) == 0
    assert "1 row can be used, 1 cannot." in capsys.readouterr().out


def test_the_report_of_a_check_is_safe_to_print(root, capsys):
    rows = [
        made(dataset="\x1b[2J"),
        made(dataset="x" * 5000, question_id=""),
        made(question_id="\n\x1b[2J", image=["no"]),
    ]
    file = written(root, "control", rows)
    given = ["data", "check", str(file), "--root", str(root), "--format", "lvr", "--on-bad-row", "skip"]
    assert main(given) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and all(line.isprintable() and len(line) < 200 for line in lines)


def settings(root: Path, file: Path, run: Path, format: str, policy: str) -> list[str]:
    given = ["mixture={}", f"data.format={format}", f"data.files=[{file}]", f"data.root={root}", "max_steps=6"]
    given += [f"output_dir={run}", f"init={EMBEDDED / 'glyph-lvr'}", "per_device_train_batch_size=2", "use_cpu=true"]
    return [*given, f"data.on_bad_row={policy}", "save_strategy=no", "eval_strategy=no", "warmup_steps=0"]


def test_a_run_stops_at_what_the_check_names_or_goes_past_it(root, tmp_path, capsys):
    rows = [*FINE, *(row | {"question_id": kind} for kind, (row, _) in BAD.items())]
    file = written(root, "all", rows)
    with file.open("a") as lines:
        lines.write('{"cut": "of\n')
    given = ["data", "check", str(file), "--root", str(root), "--format", "lvr", "--pixels", "--on-bad-row", "skip"]
    assert main(given) == 0
    out = capsys.readouterr().out
    assert out.count("left out: ") == len(BAD) + 1 and f"{len(FINE)} rows can be used" in out
    final = train(*load_recipe("glyph-lvr", settings(root, file, tmp_path / "skip", "lvr", "skip")))
    assert (final / "model.safetensors").is_file()
    names = set(listed((tmp_path / "skip/bad_rows.jsonl").read_text()))
    wanted = {f"{row['dataset']}/{kind}" for kind, (row, _) in BAD.items()} | {f"all.jsonl[{len(rows)}]"}
    assert names == wanted
    command = [
        "run",
        "glyph-lvr",
        *settings(root, written(root, "one", [GOOD, BAD["high"][0]]), tmp_path / "x", "lvr", "error"),
    ]
    assert main(command) == 2
    assert capsys.readouterr().err.startswith("error: Row glyphs/good: question holds \\ud83d")


@pytest.mark.parametrize(
    "text",
    [
        INSIDE,
        f"data:image/png;base64,{INSIDE}",
        f" data:image/PNG;charset=utf-8;base64,\n{INSIDE} ",
        f"DATA:application/octet-stream;base64,{INSIDE}",
        f"data:;base64,{INSIDE}",
        "\n".join(INSIDE[i : i + 76] for i in range(0, len(INSIDE), 76)),
        "\r\n".join(INSIDE[i : i + 64] for i in range(0, len(INSIDE), 64)) + "\r\n",
        f"data:image/png;base64,\n\t{INSIDE[:40]} {INSIDE[40:]}",
    ],
)
def test_base64_within_rows_is_read_however_it_is_broken(text, tmp_path):
    row = {"images": [text], "question": "What?", "solution": "this"}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "rows.parquet")
    ((example, _),) = PublishedDataset([tmp_path / "rows.parquet"], tmp_path, FORMATS["thyme"])
    assert example.images[0].tobytes() == EXAMPLE.images[0].tobytes()


@pytest.mark.parametrize(
    "text", ["", "i/a.png", INSIDE[:-3], INSIDE[:400], "data:image/png,abc", "größe", "====", "=" * 9]
)
def test_what_is_no_base64_is_a_short_bad_row(text, tmp_path):
    row = {"images": [text], "question": "What?", "solution": "this"}
    datasets.Dataset.from_list([row]).to_parquet(tmp_path / "rows.parquet")
    data = PublishedDataset([tmp_path / "rows.parquet"], tmp_path, FORMATS["thyme"])
    with pytest.raises(BadRow, match=r"^Row rows.parquet\[0\]: .{,150}$"):
        data[0]


def test_an_instruction_is_checked_as_rows_are(root):
    with pytest.raises(ValueError, match=r"The instruction holds \\ud83d"):
        PublishedDataset([written(root, "fine", FINE)], root, FORMATS["lvr"], instruction="\ud83d")
