"""Values of wrong kinds, from Python and on the command line: named in a sentence, or taken for what they are."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latent_core import load
from latent_core.evaluation.study import Study
from latent_core.settings import Settings, short
from tests.test_rl_stage import quick
from trainers.__main__ import main

QUESTION = "Which mark is on the blue square?"
RED = Image.new("RGB", (48, 48), (200, 30, 30))
REMEDY = "give Pillow images: PIL.Image.open(path) of a file, PIL.Image.fromarray(values) of an array."


@pytest.fixture(scope="module")
def reasoner():
    return load("glyph-monet")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ("path/to/scene.png", "images is 'path/to/scene.png'; "),
        ("", "images is ''; "),
        (Path("scene.png"), "images is PosixPath('scene.png'); "),
        (b"\x89PNG", "images is b'\\x89PNG'; "),
        (np.zeros((4, 4, 3), np.uint8), "images is array("),
        (torch.zeros(3, 4, 4), "images is tensor("),
        ({"image": RED}, "images is {'image': "),
        (None, "images is None; "),
        (7, "images is 7; "),
        (["scene.png"], "Image 1 is 'scene.png'; "),
        ([RED, "scene.png"], "Image 2 is 'scene.png'; "),
        ([[RED]], "Image 1 is [<PIL.Image.Image"),
        ([np.zeros((4, 4, 3), np.uint8)], "Image 1 is array("),
        ((None,), "Image 1 is None; "),
    ],
)
def test_what_is_no_image_is_named(reasoner, images, words):
    with pytest.raises(ValueError) as caught:
        reasoner.run(images, QUESTION)
    sentence = str(caught.value)
    assert sentence.startswith(words) and sentence.endswith(REMEDY) and len(sentence) < 250 and "\n" not in sentence


@pytest.mark.parametrize("images", [RED, [RED], (RED,), iter([RED]), Image.new("L", (48, 48))])
def test_images_come_alone_in_a_list_or_one_by_one(reasoner, images):
    assert len(reasoner.prompt(images, QUESTION).images) == 1


@pytest.mark.parametrize("question", [None, 7, b"Which?", ["Which?"]])
def test_a_question_that_is_no_text_is_named(reasoner, question):
    with pytest.raises(ValueError, match="^The question is .*, which is not text; write one"):
        reasoner.run(RED, question)


@pytest.mark.parametrize(
    ("images", "questions", "words"),
    [
        ("ab.png", [QUESTION] * 6, "images is 'ab.png'; give a list"),
        (RED, [QUESTION], "images is <PIL.Image.Image .*; give a list with an image or a list of images for each row"),
        ([RED], QUESTION, "questions is 'Which mark.*; give a list with one for each row"),
        ([RED], None, "questions is None; give a list"),
        (None, [QUESTION], "images is None; give a list"),
        ([RED], [QUESTION] * 2, "images has 1 value for 2 questions"),
        ([RED, "a.png"], [QUESTION] * 2, "images is 'a.png'; give Pillow images"),
        ([RED], [None], "The question is None, which is not text"),
        ([], [QUESTION], "images has 0 values for 1 question"),
    ],
)
def test_a_batch_that_does_not_fit_is_named(reasoner, images, questions, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        reasoner.run_batch(images, questions)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"attention": "all"}, "attention is 'all'; give True, False or a list of numbers"),
        ({"attention": 1}, "attention is 1; give True"),
        ({"attention": None}, "attention is None; give True"),
        ({"attention": [True]}, "attention names block True"),
        ({"attention": [0.0]}, "attention names block 0.0"),
        ({"attention": ["0"]}, "attention names block '0'"),
        ({"attention": [-1]}, "attention names block -1"),
        ({"intervene": 3}, "intervene is 3; give a function"),
        ({"intervene": "zero"}, "intervene is 'zero'; give a function"),
    ],
)
def test_what_cannot_be_recorded_or_done_is_named(reasoner, given, words):
    with pytest.raises(ValueError, match=f"^{words}"):
        reasoner.run(RED, QUESTION, **given)


WHOLE = {
    "latents": "K",
    "max_new_tokens": "max_new_tokens",
    "max_blocks": "max_blocks",
    "top_k": "top_k",
    "seed": "Seed",
}
REAL = {"temperature": "Temperature", "top_p": "top_p", "repetition_penalty": "repetition_penalty"}


@pytest.mark.parametrize("kind", [np.int64, np.int8, np.uint16, int])
@pytest.mark.parametrize("name", WHOLE)
def test_whole_numbers_of_numpy_are_whole_numbers(name, kind):
    found = getattr(Settings(**{name: kind(3)}), name)
    assert found == 3 and type(found) is int


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.int64(1), 1, 0.5])
@pytest.mark.parametrize("name", REAL)
def test_numbers_of_numpy_are_numbers(name, value):
    found = getattr(Settings(**{name: value}), name)
    assert found == value and type(found) in (int, float)


@pytest.mark.parametrize(
    "value",
    [True, np.bool_(True), 3.0, np.float64(3), "3", math.nan, None, [3], np.array([3]), torch.tensor(3), 10**90],
)
@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_whole_number_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{WHOLE[name]} is .*; choose"):
        Settings(**{name: value})


@pytest.mark.parametrize(
    "value", [True, "0.5", math.nan, np.float32("nan"), math.inf, -1, None, [0.5], 1j, np.zeros(2)]
)
@pytest.mark.parametrize("name", REAL)
def test_what_is_no_number_is_named(name, value):
    with pytest.raises(ValueError, match=f"^{REAL[name]} is .*; choose"):
        Settings(**{name: value})


@pytest.mark.parametrize("name", ["mode", "rule"])
@pytest.mark.parametrize("value", [3, ["latent"], b"latent", np.zeros(2)])
def test_words_are_words(name, value):
    with pytest.raises(ValueError, match="is .*; choose one of"):
        Settings(**{name: value})


def test_a_run_with_numbers_of_numpy_is_kept_and_read_again(reasoner, tmp_path):
    trace = reasoner.run(RED, QUESTION, latents=np.int64(3), temperature=np.float32(0.5), attention=np.arange(2))
    trace.save(tmp_path / "run.safetensors")
    assert trace.settings.latents == 3 and trace.attention.layers == (0, 1)
    rows = reasoner.run_batch([RED] * 2, [QUESTION] * 2, latents=list(np.array([2, 3])))
    assert [row.settings.latents for row in rows] == [2, 3]
    with pytest.raises(ValueError, match="^K is array"):
        reasoner.run_batch([RED] * 2, [QUESTION] * 2, latents=np.array([2, 3]))


def test_values_are_short_in_sentences():
    assert short("x" * 1000) == f"'{'x' * 78}…" and short(np.zeros((9, 9))).count("\n") == 0
    assert short(10**5000) == "a number of 80 digits or more" and short(7) == "7"


@pytest.mark.parametrize("batch", [0, -1])
def test_a_study_of_no_samples_at_once_is_refused(reasoner, batch):
    with pytest.raises(ValueError, match=f"batch is {batch}; at least 1"):
        Study(reasoner, lambda family, index: None, n=4, batch=batch)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("study glyph-monet --n 0", "--n is 0; it must be at least 2"),
        ("study glyph-monet --batch 0", "--batch is 0; it must be at least 1"),
        ("ablations glyph-monet --n -5", "--n is -5; it must be at least 2"),
        ("ground glyph-monet --n 1", "--n is 1; it must be at least 2"),
        ("depict glyph-monet --n 0", "--n is 0; it must be at least 2"),
        ("bank glyph-monet --n 0", "--n is 0; it must be at least 2"),
        ("reinforce glyph-monet-rl --n 0", "--n is 0; it must be at least 2"),
        ("glyphs --n 0", "--n is 0; it must be at least 2"),
        ("data write folder --n 0", "--n is 0; it must be at least 1"),
        ("data write folder --seed -1", "--seed is -1; it must be at least 0"),
    ],
)
def test_counts_on_the_command_line_are_counts(arguments, words, capsys):
    assert main(arguments.split()) == 2
    assert capsys.readouterr().err == f"error: {words}.\n"


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://127.0.0.1:9/v1", "The judge 'wise' at http://127.0.0.1:9/v1 gave no verdict on .* in 1 attempt"),
        ("http://[::1", "judge.url is 'http://\\[::1', which is not an address"),
    ],
)
def test_a_judge_that_is_down_is_one_sentence_on_the_command_line(url, words, tmp_path, capsys):
    given = ["rl.rewards={judge: 1}", f"judge.url='{url}'", "judge.model=wise", "judge.retries=0"]
    given += [f"judge.cache={tmp_path / 'verdicts'}"]
    assert main(["run", "glyph-monet-rl", *quick(tmp_path / "run", *given)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and error.endswith(".")
    assert re.search(words, error), error


def test_a_key_that_would_break_a_header_is_not_shown(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WISE_KEY", "secret\nkey")
    given = [
        "rl.rewards={judge: 1}",
        "judge.url=http://127.0.0.1:9/v1",
        "judge.model=wise",
        "judge.key_variable=WISE_KEY",
    ]
    assert main(["run", "glyph-monet-rl", *quick(tmp_path / "run", *given)]) == 2
    error = capsys.readouterr().err
    assert "WISE_KEY (judge.key_variable) holds letters that no key has" in error and "secret" not in error
