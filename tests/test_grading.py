"""Whether two answers are the same: pairs that are and pairs that are not, and what holds for all."""

import itertools
import random
import threading
import time

import pytest

from latent_core import glyphs
from latent_core.answers import extract
from latent_core.evaluation.grading import equal
from latent_core.glyphs.scene import COLOURS, MARKS, PLACES, SHAPES
from tests.answer_pairs import EQUAL, UNEQUAL

WRAPS = (
    "{}",
    r"\boxed{{{}}}",
    "<answer>{}</answer>",
    r"\text{{{}}}",
    r"\textbf{{{}}}",
    "${}$",
    '"{}"',
    "“{}”",
    "`{}`",
)
WRAPS += ("**{}**", " {} ", r"<answer>\boxed{{{}}}</answer>", r"\boxed{{\mathrm{{{}}}}}")


def table(pairs: dict[str, list[tuple[str, str]]]) -> list:
    return [pytest.param(*pair, id=f"{kind}: {pair}") for kind, each in pairs.items() for pair in each]


def everything() -> list[str]:
    return sorted({text for pairs in (EQUAL, UNEQUAL) for each in pairs.values() for pair in each for text in pair})


@pytest.mark.parametrize(("answer", "truth"), table(EQUAL))
def test_the_same_answer_written_in_another_way(answer, truth):
    assert equal(answer, truth) and equal(truth, answer)


@pytest.mark.parametrize(("answer", "truth"), table(UNEQUAL))
def test_another_answer(answer, truth):
    assert not equal(answer, truth) and not equal(truth, answer)


def test_there_are_pairs_enough():
    assert all(sum(map(len, pairs.values())) >= 100 for pairs in (EQUAL, UNEQUAL))


def test_no_answer_equals_no_answer_alone():
    assert equal(None, None) and not equal(None, "") and not equal("ring", None)


def test_equality_is_symmetric_and_reflexive():
    texts = everything()
    assert all(equal(text, text) for text in texts)
    for one, other in random.Random(3).sample(list(itertools.combinations(texts, 2)), 20_000):
        assert equal(one, other) == equal(other, one), (one, other)


def test_wrapping_decides_nothing():
    draw = random.Random(0)
    plain = [text for text in everything() if text and not set(text) & set("\"'$“«`*_<「")]
    for one, other in zip(draw.choices(plain, k=400), draw.choices(plain, k=400), strict=True):
        wrap = draw.choice(WRAPS)
        assert equal(wrap.format(one), one), (wrap, one)
        assert equal(wrap.format(one), other) == equal(one, other) == equal(one, wrap.format(other)), (
            wrap,
            one,
            other,
        )


def test_made_up_answers_behave():
    """Symmetric, reflexive, and nothing is raised, whatever the letters."""
    draw = random.Random(1)
    pieces = [
        *"0123456789",
        *"abxyB",
        *"+-*/^=.,:;()[]{}%$!°\\ ",
        "\\frac",
        "\\sqrt",
        "\\text{",
        "kg",
        "π",
        "**",
        "，",
        "²",
    ]
    made = ["".join(draw.choices(pieces, k=draw.randint(1, 9))) for _ in range(600)]
    for one, other in zip(made, made[1:], strict=False):
        assert equal(one, one) and equal(f" {one} ", one), one
        assert equal(one, other) == equal(other, one), (one, other)


def test_numbers_are_equal_as_numbers():
    draw = random.Random(2)
    for _ in range(300):
        whole, part = draw.randint(-(10**7), 10**7), draw.randint(0, 99)
        text = f"{whole}.{part:02}"
        assert equal(text, f"{whole:,}.{part:02}") and equal(text, f"{text}0") and equal(f"${text}$", text)
        assert equal(text, f"{float(text):.10e}") and equal(f"{whole * 2}/2", str(whole))
        assert not equal(text, f"{whole}.{(part + 1) % 100:02}") and not equal(f"{text} kg", f"{text} g")
        assert not equal(str(whole), str(-whole)) or whole == 0


def test_on_glyphs_it_is_equality_of_strings():
    """What the published tables count: single words and digits."""
    said = {answer for family in glyphs.FAMILIES for answer in glyphs.answers(family)}
    said |= {*MARKS, *COLOURS, *SHAPES, *itertools.chain(*PLACES), *map(str, range(20))}
    for one, other in itertools.product(said, said):
        assert equal(one, other) == (one == other), (one, other)
    assert all(extract(f"It is \\boxed{{{answer}}}.") == answer for answer in said)


HOSTILE = {
    "powers": "9**9**9",
    "more powers": "^".join(["9"] * 60),
    "letters": "a" * 50_000,
    "digits": "9" * 50_000,
    "backslashes": "\\" * 50_000,
    "braces": "{" * 50_000 + "}" * 50_000,
    "brackets": "(" * 500 + "1" + ")" * 500,
    "commas": "1," * 50_000,
    "fractions": r"\frac{" * 5_000 + "1" + "}{2}" * 5_000,
    "boxes": r"\boxed{" * 20_000 + "}" * 20_000,
    "texts": r"\text{" * 20_000 + "x" + "}" * 20_000,
    "tags": "<answer>" * 20_000 + "</answer>" * 20_000,
    "spaces in tags": "<" + " " * 50_000 + "answer" + "<   " * 10_000,
    "roots": "√" * 190 + "2",
    "signs": "-" * 190 + "2",
    "exponent": "1e999",
    "long exponent": "1e999999999",
    "factorials": "9!!!!!!!",
    "small": "2^{-9999999}",
    "dots": "." * 50_000 + "5",
    "stars": "*" * 50_001,
    "equations": "=" * 50_000 + "3",
    "spaces": "5" + " " * 50_000 + "kg" + " " * 1_000,
    "numbers in a row": "1 " * 490,
    "wide": "Ａ１，" * 30_000,
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_answers_take_no_time(text):
    begin = time.process_time()
    assert equal(text, text) and not equal(text, "ring") and not equal("3", text) and equal(f" {text} ", text)
    equal(text, text[:-1]), equal(text.swapcase(), text), extract(text), extract(f"\\boxed{{{text}}}")
    assert time.process_time() - begin < 2


def test_one_answer_takes_little_time():
    texts = everything()
    begin = time.process_time()
    for text in texts * 5:
        equal(f" {text}", "ring")
    assert time.process_time() - begin < 2e-3 * len(texts) * 5


def _verdicts(pairs: list[tuple[str, str]]) -> list[bool]:
    return [equal(*pair) for pair in pairs]


def test_verdicts_are_the_same_in_a_thread_and_in_another_process():
    pairs = [pair for each in (*EQUAL.values(), *UNEQUAL.values()) for pair in each]
    expected, verdicts = _verdicts(pairs), []
    thread = threading.Thread(target=lambda: verdicts.extend(_verdicts(pairs)))
    thread.start()
    thread.join()
    assert verdicts == expected
