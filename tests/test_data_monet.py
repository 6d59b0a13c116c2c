"""Monet-SFT-125K's format: what the released code keeps and makes of rows, round trips, broken rows."""

import copy
import io
import json
import pickle
import zipfile
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from latent_core import glyphs
from latent_core.example import TextSpan
from trainers.__main__ import main
from trainers.data.caps import cap_images
from trainers.data.monet import FORMAT, parse_row, to_example, write_rows
from trainers.data.rows import BadRow, PublishedDataset
from trainers.data.segments import segments

GOLDEN = json.loads((Path(__file__).parent / "fixtures/monet_seed0/data.json").read_text())
KEPT = [case for case in GOLDEN["sample_filter"] if case["kept"]]
DROPPED = [case for case in GOLDEN["sample_filter"] if not case["kept"]]
PIXEL = Image.new("RGB", (28, 28), "red")


def said(content: list[dict]) -> str:
    """An assistant's turn as one string, images as §."""
    return "".join(item.get("text", "§") for item in content)


@pytest.mark.parametrize("case", KEPT, ids=lambda case: case["sample"]["data"][2]["content"][0]["text"][:12])
def test_kept_rows_say_what_the_released_code_makes_of_them(case):
    row = parse_row(case["sample"], "0")
    _, user, assistant = (turn["content"] for turn in case["result"]["data"])
    assert row.question == "".join(item["text"] for item in user if item["type"] == "text")
    assert [f"root/{path}" for path in row.images] == [item["image"] for item in user if item["type"] == "image"]
    text = ""
    for part in row.parts:
        if isinstance(part, TextSpan):
            text += f"<observation>{part.text}</observation>" if part.role == "observation" else part.text
        else:
            text += "<abs_vis_token></abs_vis_token>§"
    assert text == said(assistant)


@pytest.mark.parametrize("case", DROPPED, ids=lambda case: case["sample"]["data"][2]["content"][0]["text"][:20])
def test_rows_that_the_released_code_drops_in_silence_are_named(case):
    with pytest.raises(BadRow, match=r"^Row demo/1: "):
        parse_row(case["sample"], "0")


def test_sizes_are_capped_as_released():
    for case in GOLDEN["resize"]:
        sizes = [tuple(size) for size in case["sizes"]]
        wanted = case["new_sizes"] and [tuple(size) for size in case["new_sizes"]]
        assert cap_images(sizes, case["total_tokens"], case["tokens_per_image"]) == wanted
    assert len(GOLDEN["resize"]) == 40


def test_a_thought_lies_between_the_words_around_it():
    row = parse_row(KEPT[0]["sample"], "0")
    example = to_example(row, [PIXEL, PIXEL])
    assert [(part.text, part.role) for part in segments(example) if isinstance(part, TextSpan)] == [
        ("Zoom. ", "text"),
        ("A cat", "observation"),
        (" \\boxed{cat}", "answer"),
    ]
    assert example.answer == "cat" and len(example.steps) == 1
    assert (example.steps[0].text, example.steps[0].observation) == ("Zoom.", "A cat")


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[Path, list]:
    examples = [glyphs.sample(family, seed, "train") for seed in range(3) for family in glyphs.FAMILIES]
    root = tmp_path_factory.mktemp("data")
    return write_rows(examples, root, "glyphs"), examples


def test_glyphs_come_back_as_they_were_written(written):
    file, examples = written
    data = PublishedDataset([file], file.parents[1], FORMAT)
    assert data.counts() == {"glyphs": 12}
    for row, example in zip(data.rows, examples, strict=True):
        back = data.example(row)
        assert (back.question, back.answer) == (example.question, example.answer)
        assert len(back.steps) == len(example.steps)
        for first, second in zip(segments(back), segments(example), strict=True):
            if isinstance(second, TextSpan):
                assert first == second
            else:
                assert ImageChops.difference(first.step.image, second.step.image).getbbox() is None
        for first, second in zip(back.images, example.images, strict=True):
            assert ImageChops.difference(first, second).getbbox() is None


def change(path: str, value: object) -> dict:
    """The first golden row with one value replaced, at a path such as `data.1.role`."""
    row = copy.deepcopy(KEPT[0]["sample"])
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    target = row
    for step in way:
        target = target[step]
    target[last] = value
    return row


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("text", "metadata is NoneType"),
        ({"metadata": {}, "data": []}, "dataset_name"),
        (change("data", []), r"roles are \[\]"),
        (change("data.1.role", "human"), "human"),
        (change("data.1.content", "q"), "content is str"),
        (change("data.1.content", [{"type": "text", "text": "q"}]), "no image"),
        (change("data.1.content.0", {"type": "video", "video": "x"}), "no text and no image"),
        (change("data.1.content.0", {"type": "image", "image": 3}), "no text and no image"),
        (change("data.1.content.1.text", " "), "question is empty"),
        (change("data.2.content.0.text", "<abs_vis_token></abs_vis_token> late"), "does not end"),
    ],
)
def test_a_broken_row_says_what_is_wrong(row, words):
    with pytest.raises(BadRow, match=words):
        parse_row(row, "train.json[7]")


def test_bad_rows_stop_or_are_skipped_and_listed(written, tmp_path):
    file, _ = written
    rows = json.loads(file.read_text())
    rows[1]["data"][2]["content"][1]["image"] = "glyphs/images/none.png"
    rows[4]["data"][2]["content"][2]["text"] = "nothing seen"
    broken = tmp_path / "broken.json"
    broken.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(BadRow, match="Row glyphs/1: the image glyphs/images/none.png is missing"):
        PublishedDataset([broken], file.parents[1], FORMAT)
    data = PublishedDataset([broken], file.parents[1], FORMAT, on_bad_row="skip", report=tmp_path / "bad.jsonl")
    assert len(data) == 10
    listed = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [entry["name"] for entry in listed] == ["glyphs/1", "glyphs/4"]


def test_an_image_that_cannot_be_decoded_stops_or_is_skipped(tmp_path):
    example = glyphs.sample("find", 0, "train")
    file = write_rows([example, example], tmp_path, "glyphs")
    rows = json.loads(file.read_text())
    path = rows[0]["data"][1]["content"][0]["image"]
    (tmp_path / path).parent.mkdir()
    (tmp_path / path).write_bytes(b"no image")
    with pytest.raises(BadRow, match="Row glyphs/0"):
        list(PublishedDataset([file], tmp_path, FORMAT))
    data = PublishedDataset([file], tmp_path, FORMAT, on_bad_row="skip", report=tmp_path / "bad.jsonl")
    assert [data[i][0].name for i in range(2)] == ["glyphs/1", "glyphs/1"]
    assert "glyphs/0" in (tmp_path / "bad.jsonl").read_text()


@pytest.mark.parametrize(
    "path", ["/etc/hostname", "../secret.png", "a/../../secret.png", "a\\..\\b.png", "", "link.png"]
)
def test_an_image_path_stays_in_the_folder(path, tmp_path):
    PIXEL.save(tmp_path / "secret.png")
    root = tmp_path / "root"
    root.mkdir()
    (root / "link.png").symlink_to(tmp_path / "secret.png")
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([change("data.1.content.0.image", path)]))
    with pytest.raises(BadRow, match="missing|stay"):
        PublishedDataset([file], root, FORMAT)


def test_an_image_bomb_in_a_zip_is_refused(tmp_path):
    big = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(big, "PNG")
    file = write_rows([glyphs.sample("find", 0, "train")], tmp_path, "glyphs")
    with zipfile.ZipFile(tmp_path / "glyphs/images.zip", "w") as archive:
        for number in range(2):
            archive.writestr(f"images/{number:07}.png", big.getvalue())
    with pytest.raises(BadRow, match="million"):
        PublishedDataset([file], tmp_path, FORMAT)[0]


def test_order_splits_and_random_numbers_depend_on_the_seed_alone(written):
    file, _ = written
    root = file.parents[1]
    first, again, other = (PublishedDataset([file], root, FORMAT, size=30, seed=seed, batch=4) for seed in (0, 0, 1))
    names = [[data[i][0].name for i in range(30)] for data in (first, pickle.loads(pickle.dumps(again)), other)]
    assert names[0] == names[1] != names[2]
    assert sorted(names[0][:12]) == sorted(names[0][12:24])  # whole epochs
    assert names[0][:12] != names[0][12:24]
    draws = [first[i][1].random() for i in range(8)]
    assert len(set(draws[:4])) == len(set(draws[4:])) == 1 and draws[0] != draws[4]


def test_train_and_val_share_no_row(tmp_path):
    example = glyphs.sample("find", 0, "train")
    file = write_rows([example] * 400, tmp_path, "glyphs")
    train, val = (PublishedDataset([file], tmp_path, FORMAT, split=split) for split in ("train", "val"))
    assert {row.name for row in train.rows}.isdisjoint(row.name for row in val.rows)
    assert len(train) + len(val) == 400 and 0 < len(val) < 12


def test_the_command_line_writes_and_checks(tmp_path, capsys):
    assert main(["data", "write", str(tmp_path), "--n", "5", "--families", "find", "count"]) == 0
    file = str(tmp_path / "glyphs/train.json")
    assert main(["data", "check", file, "--root", str(tmp_path), "--pixels"]) == 0
    assert "glyphs: 5 rows\n5 rows can be used, 0 cannot." in capsys.readouterr().out
    assert main(["data", "check", file, "--root", str(tmp_path / "elsewhere")]) == 2
    assert "Row glyphs/0: the image glyphs/images/0000000.png is missing" in capsys.readouterr().err
    assert main(["data", "write", str(tmp_path), "--n", "0"]) == 2
    assert main(["data", "write", str(tmp_path), "--families", "list"]) == 2
    assert "no thoughts" in capsys.readouterr().err


def test_a_file_that_is_no_json_is_named(tmp_path):
    (tmp_path / "x.json").write_text("[{")
    with pytest.raises(ValueError, match=r"x\.json is not valid JSON"):
        PublishedDataset([tmp_path / "x.json"], tmp_path, FORMAT)
    (tmp_path / "z.json").write_bytes(b"\x89PNG")
    with pytest.raises(ValueError, match=r"z\.json is no text"):
        PublishedDataset([tmp_path / "z.json"], tmp_path, FORMAT)
    with pytest.raises(ValueError, match=r"y\.json cannot be read"):
        PublishedDataset([tmp_path / "y.json"], tmp_path, FORMAT)
