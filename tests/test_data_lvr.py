"""LVR's format: what the released code makes of turns, round trips through files, broken rows by name."""

import copy
import json
from pathlib import Path

import pytest

from latent_core import glyphs
from latent_core.example import TextSpan
from trainers.__main__ import main
from trainers.data.formats import FORMATS
from trainers.data.lvr import parse_row, to_example
from trainers.data.rows import BadRow, PublishedDataset

GOLDEN = json.loads((Path(__file__).parent / "fixtures/lvr_seed0/case.json").read_text())["conversations"]
CASES = [case for case in GOLDEN if case.get("latent_end_token", "") is None]
ROW = {
    "dataset": "signs",
    "question_id": 7,
    "image": ["a.png"],
    "conversations": [
        {"from": "human", "value": "<image>\nWhat is written on the sign?"},
        {"from": "gpt", "value": "<lvr>\n<answer> stop </answer>"},
    ],
    "bboxes": [[0.25, 0.25, 0.75, 0.5]],
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["turns"][1]["value"][:20])
def test_turns_say_what_the_released_code_makes_of_them(case):
    boxes = [[0.1 * (i + 1), 0.2, 0.9, 0.8] for i in range(len(case["tokens_per_box"]))]
    row = parse_row(ROW | {"conversations": case["turns"], "bboxes": boxes}, "0")
    user, assistant = (turn["content"] for turn in case["result"])
    marks = "<|vision_start|><|image_pad|><|vision_end|>"
    assert row.question.split() == user.replace(marks, "").split()
    slots = iter(case["tokens_per_box"])
    said = "".join(
        part.text if isinstance(part, TextSpan) else f"<|lvr_start|>{'<|lvr|>' * len(next(slots))}<|lvr_end|>"
        for part in row.parts
    )
    assert said == assistant
    assert [list(part) for part in row.parts if not isinstance(part, TextSpan)] == boxes


def changed(**fields):
    row = copy.deepcopy(ROW)
    row.update(fields)
    return {name: value for name, value in row.items() if value is not ...}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([], "Row f[0]: dataset is NoneType"),
        (changed(dataset=...), "Row f[0]: dataset is NoneType"),
        (changed(question_id=...), "Row f[0]: question_id is missing"),
        (changed(image=[]), "Row signs/7: image has to list"),
        (changed(image=["a.png", "b.png"]), "2 images stand beside 1 marks <image>"),
        (changed(bboxes=[]), "0 boxes stand beside 1 marks <lvr>"),
        (changed(bboxes=1.5), "bboxes is float"),
        (changed(bboxes={"0": [0, 0, 1, 1]}), "bboxes is dict"),
        (changed(bboxes=[[0, 0, 1.2, 1]]), r"the box \[0, 0, 1.2, 1\] is empty or leaves the image"),
        (changed(bboxes=[[0.5, 0, 0.5, 1]]), "is empty or leaves"),
        (changed(bboxes=[[0, 0, 1]]), "is no box"),
        (changed(bboxes=[["0", 0, 1, 1]]), "is no box"),
        (changed(bboxes=[[float("nan"), 0, 1, 1]]), "is empty or leaves"),
        (changed(conversations=ROW["conversations"][:1]), "begin with a turn of human and one of gpt"),
        (changed(conversations=["x", "y"]), "begin with a turn of human"),
        (
            changed(
                image=["a", "b"],
                conversations=[{"from": "human", "value": "<image><image>?"}, ROW["conversations"][1]],
            ),
            "which one a box lies on",
        ),
        (changed(conversations=[{"from": "human", "value": "<image>"}, ROW["conversations"][1]]), "question is empty"),
    ],
)
def test_bad_rows_are_named(row, words):
    with pytest.raises(BadRow, match=words.replace("f[0]", r"f\[0\]")):
        parse_row(row, "f[0]")


def test_glyphs_come_back_from_files(tmp_path):
    examples = [glyphs.sample(family, 3, "train") for family in ("find", "relate", "trace")]
    file = FORMATS["lvr"].write_rows(examples, tmp_path, "glyphs")
    data = PublishedDataset([file], tmp_path, FORMATS["lvr"])
    found = {example.name: example for example, _ in (data[i] for i in range(3))}
    for number, example in enumerate(examples):
        back = found[f"glyphs/{number}"]
        assert back.question == example.question and back.answer == example.answer
        assert [step.region for step in back.steps] == [step.region for step in example.steps]
        assert back.images[0].convert("RGB").tobytes() == example.images[0].tobytes()
    nowhere = next(e for e in (glyphs.sample("count", i, "train") for i in range(99)) if e.answer == "0")
    with pytest.raises(BadRow, match="looks at no box"):
        FORMATS["lvr"].write_rows([nowhere], tmp_path, "none")
    assert not (tmp_path / "none").exists()


def test_command_line(tmp_path, capsys):
    written = ["data", "write", str(tmp_path), "--n", "4", "--families", "find", "--format", "lvr"]
    assert main(written) == 0
    assert (
        main(["data", "check", str(tmp_path / "glyphs/train.json"), "--root", str(tmp_path), "--format", "lvr"]) == 0
    )
    assert "4 rows can be used, 0 cannot" in capsys.readouterr().out
    file = tmp_path / "glyphs/train.json"
    rows = json.loads(file.read_text())
    rows[2]["bboxes"][0][2] = 7
    file.write_text(json.dumps(rows))
    assert main(["data", "check", str(file), "--root", str(tmp_path), "--format", "lvr"]) == 2
    assert "Row glyphs/2" in capsys.readouterr().err


def test_a_row_with_its_image():
    row = parse_row(ROW, "0")
    example = to_example(row, [glyphs.sample("find", 0).images[0]])
    assert (
        example.answer == "stop" and example.steps[0].region == (0.25, 0.25, 0.75, 0.5) and example.name == "signs/7"
    )
