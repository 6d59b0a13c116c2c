"""Data of reinforcement learning: ViRL39K's and Thyme-RL's rows, round trips of Glyphs, broken rows by name, a run."""

import base64
import io
import json

import datasets
import numpy as np
import pytest
from PIL import Image

from latent_core import glyphs
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.trace import Trace
from trainers.__main__ import main
from trainers.data import thyme, virl
from trainers.data.formats import FORMATS
from trainers.data.rows import BadRow, PublishedDataset
from trainers.loop.launch import train
from trainers.recipe import load_recipe

VIRL = {
    "question": "<image>\nWhich diagram is symmetric?",
    "answer": "\\boxed{A}",
    "PassRate_32BTrained": 0.5,
    "PassRate_7BBase": 0.25,
    "category": "Spatial Reasoning",
    "source": "somewhere",
    "qid": "q-7",
    "image": ["images/a.png"],
}
CONVERTED = {
    "image": ["images/a.png"],
    "conversations": [
        {"from": "human", "value": "<image>\nWhich diagram is symmetric?"},
        {"from": "gpt", "value": "<answer>A</answer>"},
    ],
}
THYME = {"images": ["aGVsbG8="], "question": "What does the sign say?", "solution": "stop"}
SAID_NOTHING = (
    "\\boxed{}",
    "\\boxed{\\text{}}",
    "<answer></answer>",
    "<answer> \\boxed{ } </answer>",
    "\\boxed{\\textbf{ . }}",
)
SAID_NOTHING += ("...", "\\boxed{\\quad}", '\\boxed{""}', "\\boxed{$$}", "\\boxed{\u200b}", "\\boxed{B", "<answer>B")


def png(image: Image.Image) -> bytes:
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


@pytest.mark.parametrize("row", [VIRL, CONVERTED])
def test_both_forms_of_virl_say_the_same(row):
    found = virl.parse_row(row, "f[0]")
    assert (found.question, found.answer) == ("Which diagram is symmetric?", "A")
    assert found.paths == ("images/a.png",) and found.name == ("virl/q-7" if row is VIRL else "f[0]")


def test_a_solution_may_be_plain_boxed_or_tagged():
    for solution in (
        "stop",
        "It says \\boxed{stop}",
        "<answer> stop </answer>",
        "<answer>\\boxed{\\textbf{stop}}</answer>",
    ):
        row = thyme.parse_row(THYME | {"solution": solution}, "f[3]")
        assert (row.name, row.question, row.answer) == ("f[3]", "What does the sign say?", "stop")


@pytest.mark.parametrize(
    ("parse", "row", "words"),
    [
        (virl.parse_row, [], "Row f[0]: question is NoneType"),
        (virl.parse_row, VIRL | {"answer": 3}, "Row f[0]: answer is int"),
        (virl.parse_row, VIRL | {"image": []}, "Row virl/q-7: image has to list"),
        (virl.parse_row, VIRL | {"image": [{"bytes": "x"}]}, "Row virl/q-7: image has to list"),
        (virl.parse_row, VIRL | {"question": "<image><image>Which?"}, "1 images stand beside 2 marks <image>"),
        (virl.parse_row, VIRL | {"question": "<image>\n"}, "the question is empty"),
        (virl.parse_row, VIRL | {"answer": " "}, "the answer is empty"),
        *(
            (virl.parse_row, VIRL | {"answer": said}, "Row virl/q-7: the answer is empty or cut off")
            for said in SAID_NOTHING
        ),
        (thyme.parse_row, THYME | {"solution": "\\boxed{}"}, "the answer is empty or cut off: '\\\\boxed{}' says"),
        (virl.parse_row, CONVERTED | {"conversations": [{"from": "gpt", "value": "x"}]}, "begin with a turn of human"),
        (thyme.parse_row, None, "Row f[0]: images is NoneType"),
        (thyme.parse_row, THYME | {"images": []}, "images has to list one or more images in base64"),
        (thyme.parse_row, THYME | {"images": [b"x"]}, "images has to list"),
        (thyme.parse_row, THYME | {"question": ""}, "the question is empty"),
        (thyme.parse_row, {"images": ["x"], "question": "?"}, "solution is NoneType"),
    ],
)
def test_a_broken_row_is_named_with_its_reason(parse, row, words):
    with pytest.raises(BadRow) as error:
        parse(row, "f[0]")
    assert words in str(error.value)


@pytest.mark.parametrize("format", ["virl", "thyme"])
def test_glyphs_survive_the_way_through_files(format, tmp_path, capsys):
    assert main(["data", "write", str(tmp_path), "--n", "6", "--families", "count", "find", "--format", format]) == 0
    (file,) = tmp_path.glob("glyphs/train.*")
    assert file.suffix == {"virl": ".json", "thyme": ".parquet"}[format]
    data = PublishedDataset([file], tmp_path, FORMATS[format])
    assert len(data) == 6
    for number, row in enumerate(data.rows):
        example, wanted = data.example(row), glyphs.sample(("count", "find")[number % 2], number // 2, "train")
        assert (example.question, example.answer, example.steps) == (wanted.question, wanted.answer, ())
        for image, original in zip(example.images, wanted.images, strict=True):
            assert np.array_equal(np.asarray(image), np.asarray(original))
    checked = ["data", "check", str(file), "--root", str(tmp_path), "--pixels", "--format", format]
    assert main(checked) == 0 and "6 rows can be used, 0 cannot." in capsys.readouterr().out


def test_the_check_finds_truths_that_say_nothing(tmp_path, capsys):
    assert main(["data", "write", str(tmp_path), "--n", "3", "--format", "virl"]) == 0
    file = tmp_path / "glyphs" / "train.json"
    rows = json.loads(file.read_text())
    rows[0]["answer"], rows[2]["answer"] = "\\boxed{}", "<answer>\\boxed{\\text{ }}</answer>"
    file.write_text(json.dumps(rows))
    check = ["data", "check", str(file), "--root", str(tmp_path), "--format", "virl"]
    assert main(check) == 2 and "Row virl/glyphs-0: the answer is empty" in capsys.readouterr().err
    assert main([*check, "--on-bad-row", "skip"]) == 0
    assert "1 row can be used, 2 cannot." in capsys.readouterr().out


def test_images_within_rows_are_as_hostile_as_files(tmp_path):
    good = base64.b64encode(png(Image.new("RGB", (30, 30)))).decode()
    pictures = [good, f"data:image/png;base64,{good}", "no base64!", base64.b64encode(b"hello").decode()]
    rows = [THYME | {"images": [picture]} for picture in pictures]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "rows.parquet")
    data = PublishedDataset([tmp_path / "rows.parquet"], tmp_path, FORMATS["thyme"])
    assert [data.example(row).images[0].size for row in data.rows[:2]] == [(30, 30)] * 2
    with pytest.raises(BadRow, match=r"Row rows.parquet\[2\]: an image is no base64"):
        data.example(data.rows[2])
    with pytest.raises(BadRow, match=r"Row rows.parquet\[3\]: "):
        data.example(data.rows[3])


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    (tmp_path / "rows.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"rows\.parquet is no Parquet file"):
        PublishedDataset([tmp_path / "rows.parquet"], tmp_path, FORMATS["thyme"])


def test_questions_alone_teach_no_reasoning():
    given = ["mixture={}", "data.format=thyme", "data.files=[x.parquet]"]
    with pytest.raises(ValueError, match="data.format thyme has questions and answers alone; it serves stage rl"):
        load_recipe("glyph-lvr", given)


@pytest.mark.slow
@pytest.mark.parametrize("format", ["virl", "thyme"])
def test_a_run_on_published_rows(format, tmp_path):
    file = FORMATS[format].write_rows([glyphs.sample("count", i, "train") for i in range(120)], tmp_path, "glyphs")
    given = ["mixture={}", f"data.format={format}", f"data.files=[{file}]", f"data.root={tmp_path}", "max_steps=2"]
    given += [f"init={EMBEDDED / 'glyph-lvr'}", f"output_dir={tmp_path / 'run'}", "per_device_train_batch_size=2"]
    given += ["rl.updates=2", "rl.group=3", "warmup_steps=0", "save_strategy=no", "use_cpu=true", "logging_steps=1"]
    given += ["data.instruction=Answer in one word.", "eval_steps=2", "val_size=2"]
    final = train(*load_recipe("glyph-lvr-rl", given))
    lines = [json.loads(line) for line in (final.parent / "metrics.jsonl").read_text().splitlines()]
    first, second = (line for line in lines if "solved_0" in line)
    assert first["trigger"] > 0 and first["reward"] == second["reward"]  # both learn from the same responses
    index = (final.parent / "rollouts/step-00002/index.jsonl").read_text().splitlines()
    shown = Trace.load(final.parent / "rollouts/step-00002" / json.loads(index[0])["file"])
    assert shown.question == json.loads(index[0])["question"] and shown.question.endswith(" Answer in one word.")
