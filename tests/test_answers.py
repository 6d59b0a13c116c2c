"""The answer of a response."""

import time

import pytest

from latent_core.answers import extract, find, truth


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
        ("\\boxed {B}", "B"),
        ("\\boxed\n{B}", "B"),
        ("<answer>\\boxed{B}</answer>", "B"),
        ("<answer>It is \\boxed{B}.</answer>", "B"),
        ("\\boxed{<answer>B</answer>}", "B"),
        ("<answer>A</answer> so \\boxed{<answer>B</answer>}", "B"),
        ("\\boxed{\\boxed{B}}", "B"),
        ("\\boxed{\\textbf{B}}", "B"),
        ("\\boxed{\\textbf{\\text{B}}}", "B"),
        ("\\boxed{\\mathrm{ring}}", "ring"),
        ("\\boxed{5\\text{ kg}}", "5 kg"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{\\}}", None),
        ("\\boxed{\\} is a brace}", "\\} is a brace"),
        ("\\\\boxed{B}", "B"),
        ("\\boxed{\\left\\{x\\right\\}} x", "\\left\\{x\\right\\}"),
        ("<ANSWER>B</ANSWER>", "B"),
        ("<Answer> B </ answer >", "B"),
        ("<answer>\nB\n</answer>", "B"),
        ("<answer>a</answer> <answer>b</answer>", "b"),
        ("<answer>a</answer> <answer>b", "a"),
        ("<answer>a <answer>b</answer>", "b"),
        ("<answer>a</answer> b </answer>", "a"),
        ("\\boxed{}", None),
        ("\\boxed{\\text{}}", None),
        ("<answer></answer>", None),
        ("<answer> . </answer>", None),
        ("<answer>\\boxed{}</answer>", None),
        ("\\boxed{$$}", None),
        ("\\boxed{\\quad}", None),
        ("\\boxed{\\underline{\\hspace{1cm}}}", None),
        ('\\boxed{""}', None),
        ("\\boxed{。}", None),
        ("\\boxed{\\boxed{}}", None),
        ("\\boxed{a} \\boxed{}", "a"),
        ("<answer>a</answer> \\boxed{ }", "a"),
        ("\\boxed{%}", "%"),
        ("\\boxed{○}", "○"),
        ("\\boxed{-}", None),
        ("\\boxed{ring", None),
        ("\\boxed{a} \\boxed{b", "a"),
        ("<answer>4", None),
        ("no answer", None),
        ("", None),
    ],
)
def test_extract(text, answer):
    assert extract(text) == answer


@pytest.mark.parametrize(
    ("text", "said"),
    [("ring", "ring"), ("\\boxed{ring}", "ring"), ("<answer> ring </answer>", "ring"), ("\\text{ring} ", "ring")]
    + [(text, None) for text in ("", " . ", "\\boxed{}", "\\boxed{ring", "<answer>ring", "\\text{}", "\u3000")],
)
def test_the_truth_of_a_row_may_stand_by_itself(text, said):
    assert truth(text) == said


def test_where_the_answer_stands():
    text = "ring or <answer>\\boxed{ring}</answer>, a ring"
    assert text[slice(*find(text))] == "ring" and find(text)[0] == text.index("{") + 1
    assert find("ring") is None


def test_hostile_text_takes_no_time():
    begin = time.process_time()
    assert extract("\\boxed{" * 10_000) is None
    assert extract("<answer>" * 10_000) is None
    assert extract("\\boxed{" * 10_000 + "}" * 10_000) is None
    assert extract("\\boxed{}" * 10_000 + "<answer>." * 10_000 + "</answer>") is None
    assert extract("\\boxed{<answer>" * 10_000 + "x</answer>}" * 10_000) == "x"
    assert extract("\\" * 50_000) is None
    assert extract("\\boxed" + " " * 50_000 + "<" + " " * 50_000 + "answer") is None
    assert time.process_time() - begin < 1
