"""The answer of a response."""

import time

import pytest

from latent_core.answers import extract


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So it is \\boxed{ring}.", "ring"),
        ("\\boxed{ cross }", "cross"),
        ("\\boxed{a} no, \\boxed{b}", "b"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\text{B}}", "B"),
        ("<answer>4</answer>", "4"),
        ("<answer> two\nlines </answer>", "two\nlines"),
        ("<answer>x</answer> \\boxed{y}", "y"),
        ("\\boxed{y} <answer>x</answer>", "x"),
        ("\\boxed{a \\boxed{b}", "b"),
        ("\\boxed{\\boxed{a} and b}", "\\boxed{a} and b"),
        ("} \\boxed{a}}", "a"),
        ("</answer> <answer>x</answer> </answer", "x"),
        ("\\boxed{}", ""),
        ("\\boxed{ring", None),
        ("\\boxed{a} \\boxed{b", "a"),
        ("<answer>4", None),
        ("no answer", None),
        ("", None),
    ],
)
def test_extract(text, answer):
    assert extract(text) == answer


def test_hostile_text_takes_no_time():
    begin = time.perf_counter()
    assert extract("\\boxed{" * 20_000) is None
    assert extract("<answer>" * 20_000) is None
    assert time.perf_counter() - begin < 1
