"""Whether two answers are the same: pairs that are and pairs that are not, and what holds for all."""

import itertools
import random
import threading
import time

import pytest

from latent_core import glyphs
from latent_core.answers import extract
from latent_core.glyphs.scene import COLOURS, MARKS, PLACES, SHAPES
from latent_core.grading import equal

EQUAL = {
    "choices": [
        ("(B)", "B"),
        ("B)", "B"),
        ("B.", "B"),
        ("B:", "B"),
        ("[B]", "B"),
        ("b", "B"),
        ("Option B", "B"),
        ("Answer: B", "B"),
        ("The answer is B.", "(B)"),
        ("The correct answer is: ring", "ring"),
        ("(b) ring", "B"),
        ("B. ring", "B"),
        ("B: ring", "B"),
        ("B) ring", "ring"),
        ("(B) ring", "B. Ring"),
        ("A. 5 kg", "5 kg"),
        ("{B}", "B"),
    ],
    "wrapping": [
        (r"\boxed{B}", "B"),
        (r"\boxed {B}", "B"),
        (r"\fbox{B}", "B"),
        (r"<answer>\boxed{B}</answer>", "B"),
        ("<ANSWER> B </ANSWER>", "B"),
        (r"\textbf{B}", "B"),
        (r"\boxed{\textbf{(B)}}", "B"),
        (r"\mathrm{ring}", "ring"),
        (r"\text{dark } \text{ring}", "dark ring"),
        (r"\textbf{\text{ring}}", "ring"),
        ("$B$", "B"),
        ("$$B$$", "B"),
        (r"\(B\)", "B"),
        (r"\[ 0.5 \]", "0.5"),
        ('"ring"', "ring"),
        ("“ring”", "ring"),
        ("'ring'", "ring"),
        ("«ring»", "ring"),
        ("`ring`", "ring"),
        ("```ring```", "ring"),
        ("**ring**", "ring"),
        ("*ring*.", "ring"),
        ("__ring__", "ring"),
        ("**B**.", "(B)"),
        (r"\boxed{5\text{ kg}}", "5 kg"),
    ],
    "words": [
        ("Ring", "ring"),
        (" tee. ", "tee"),
        ("Yes!", "yes"),
        ("No.", "no"),
        ("yes?!", "Yes"),
        ("the  upper\nleft", "the upper left"),
        ("red – blue", "red-blue"),
        ("don’t", "don't"),
        ("café", "cafe\u0301"),
        ("ﬁre", "fire"),
        ("ring\u200b", "ring"),
        ("N/A", "n/a"),
    ],
    "Chinese and full width": [
        ("（B）", "B"),
        ("Ｂ", "B"),
        ("B。", "B"),
        ("【B】", "B"),
        ("B．", "B"),
        ("B：圆环", "B"),
        ("（B）圆环", "圆环"),
        ("选项B", "B"),
        ("答案：B", "B"),
        ("是。", "是"),
        ("“是”！", "是"),
        ("「圆环」", "圆环"),
        ("１２", "12"),
        ("３．５", "3.5"),
        ("１，０００", "1000"),
        ("－３", "-3"),
        ("５０％", "50%"),
        ("红，蓝", "红、蓝"),
        ("（１，２）", "(1, 2)"),
        ("5千克", "5 kg"),
        ("5 ㎏", "5 kg"),
    ],
    "numbers": [
        (".5", "0.5"),
        ("0.50", "0.5"),
        ("1e3", "1000"),
        ("1E3", "1000.0"),
        ("1.5e-3", "0.0015"),
        ("1,000", "1000.0"),
        ("1,234,567.5", "1234567.50"),
        (r"1{,}000", "1000"),
        (r"10\,000", "10000"),
        ("10\u202f000", "10,000"),
        ("3.", "3"),
        ("+5", "5"),
        ("−2", "-2"),
        ("- 2", "-2"),
        ("50%", "0.5"),
        (r"50\%", "50 percent"),
        ("12.5%", "1/8"),
        (r"3 \times 10^5", "300000"),
        ("3 × 10^{-2}", "0.03"),
        ("3x10^5", "300,000"),
        ("٣", "3"),
    ],
    "fractions": [
        (r"\frac{1}{2}", "0.5"),
        (r"\dfrac{1}{2}", "1/2"),
        (r"\frac12", "1/2"),
        (r"-\frac{3}{4}", "-0.75"),
        ("2/4", "1/2"),
        ("½", "0.5"),
        ("1½", "1.5"),
        ("1 1/2", "3/2"),
        (r"2\frac{1}{2}", "2.5"),
        ("1 1/2 inches", "1.5 in"),
    ],
    "units": [
        ("5 kg", "5kg"),
        ("5 kg", "5.0 kilograms"),
        (r"5\,\text{cm}", "5 cm"),
        ("3 hours", "3 hour"),
        ("3 h", "3 hrs"),
        ("5m", "5 meters"),
        ("25 cm²", "25 cm^2"),
        (r"25 \text{ cm}^{2}", "25 square centimeters"),
        ("40^\\circ", "40°"),
        (r"40^{\circ}", "40 degrees"),
        ("30℃", "30 °C"),
        ("30 degrees Celsius", "30°C"),
        ("$5", "5 dollars"),
        (r"\$1,000", "$1000"),
        ("18 km / h", "18 km/h"),
        ("5 apples", "5.0 Apples"),
        ("5", "5 kg"),
        ("40", r"40^\circ"),
        ("5 m", "5"),
        (r"2\sqrt{3} cm", r"\sqrt{12} \text{ cm}"),
    ],
    "lists": [
        ("1,2", "1, 2"),
        ("1; 2", "1;2"),
        ("(1,2)", "( 1.0 , 2 )"),
        (r"\left(\frac{1}{2}, 3\right)", "(0.5, 3)"),
        ("[1,2)", "[1, 2)"),
        (r"\{1, 2\}", r"\{2,1\}"),
        ("red, Blue", "Red,blue"),
        ("1,000, 2,000", "1000, 2000"),
        ("(1,2), (3,4)", "(1, 2),(3, 4)"),
        ("(5)", "5"),
        ("A, C", "a,c"),
        ("x = 1, y = 2", "y = 2, x = 1"),
    ],
    "equations and formulas": [
        ("x = 3", "3"),
        ("x=3", "x = 3.0"),
        ("3 = x", "x = 3"),
        ("2x = 6", "x = 3"),
        ("width = 3", "Width = 3.0"),
        ("x = 5 cm", "5"),
        ("y = 2x + 1", "2x + 1"),
        ("y = 2x + 1", "y - 2x = 1"),
        ("A = (1, 2)", "(1,2)"),
        ("x^2 + 1", "1 + x^2"),
        ("x²+1", "x^2+1"),
        ("(x+1)(x-1)", "x^2 - 1"),
        (r"\sqrt{8}", r"2\sqrt{2}"),
        (r"\frac{\sqrt{3}}{3}", r"\frac{1}{\sqrt{3}}"),
        (r"2\pi r", "2πr"),
        (r"\frac{\pi}{2}", "π/2"),
        ("2^{10}", "1024"),
        (r"\theta", "θ"),
        (r"x \geq 3", "x≥3"),
        ("x >= 3", "3 ≤ x"),
        ("x > 3", "3 < x"),
        (r"x_{1}", "x_1"),
    ],
    "dates, times, names": [
        ("10:30 AM", "10:30 am"),
        ("2024-01-02", "2024–01–02"),
        ("v1.10.", "V1.10"),
        ("1–3", "1-3"),
        ("3 : 4", "3:4"),
        ("221B Baker Street,London", "221b Baker Street, London"),
    ],
}
UNEQUAL = {
    "choices": [
        ("A", "B"),
        ("(A) ring", "(B) ring"),
        ("(B) ring", "(B) bar"),
        ("B. ring", "A"),
        ("A, B", "A"),
        ("AB", "A"),
        ("BA", "AB"),
        ("B", "8"),
        ("ring", "gnir"),
        ("ring", "a ring and a bar"),
        ("yes", "no"),
        ("Yes, but not here", "Yes"),
        ("not B", "B"),
        ("The answer is not B", "B"),
    ],
    "numbers": [
        ("1,2", "12"),
        ("1,2", "1.2"),
        ("1,23", "123"),
        ("12,34", "1234"),
        ("1 2", "12"),
        ("0,5", "5"),
        ("3", "3.01"),
        ("3a", "3"),
        ("-2", "2"),
        ("−2", "2"),
        ("1.000", "1000"),
        ("1e3", "1e4"),
        ("1e3", "13"),
        ("50%", "50"),
        ("0.33", "1/3"),
        ("0.333...", "0.333"),
        ("007", "7"),
        ("", "0"),
        ("12", "21"),
        ("5!", "5"),
        ("x2", "x²"),
        ("2½", "21/2"),
        ("12345678901234567890123", "12345678901234567890124"),
        ("1/2", "2/1"),
        ("two", "three"),
    ],
    "units": [
        ("5 kg", "5 g"),
        ("5kg", "5g"),
        ("3 hours", "3 minutes"),
        ("3 h", "3 s"),
        ("5 m", "5 cm"),
        ("5 m", "5 km"),
        ("5 m", "5 m^2"),
        ("25 cm^2", "25 cm^3"),
        ("10 km", "10 miles"),
        ("18 km/h", "18 m/h"),
        ("30°C", "30°F"),
        ("$5", "€5"),
        ("$5", "5 cents"),
        ("5 MW", "5 mW"),
        ("5 kg", "6 kg"),
        ("5 apples", "5 pears"),
        ("5 apples", "5"),
        ("5 million", "5 billion"),
        ("5 million", "5"),
        ("1 h", "60 min"),
        ("5千克", "5克"),
        ("3小时", "3分钟"),
        ("5 feet 3 inches", "5 feet 4 inches"),
        ("5 feet 3 inches", "5 feet"),
        (r"5 \text{ kg}", r"5 \text{ g}"),
        ("12 am", "12 pm"),
    ],
    "lists": [
        ("(1,2)", "(1,3)"),
        ("(1,2)", "(2,1)"),
        ("(1,2)", "(12)"),
        ("(1,2)", "[1,2]"),
        ("[1,2)", "[1,2]"),
        ("(1,200)", "1200"),
        ("1, 2", "2, 1"),
        ("1, 2", "1, 2, 3"),
        ("1, 2, 3, ...", "1, 2, 3"),
        ("1, 2", "1"),
        (r"\{1, 2\}", r"\{1, 3\}"),
        (r"\{1, 1, 2\}", r"\{1, 2, 2\}"),
        ("(1, 2, 3)", "(1, 2)"),
        ("red, blue", "blue, red"),
        ("a,b;c", "a;b,c"),
        ("ACB", "ABC"),
    ],
    "equations and formulas": [
        ("width = 3", "height = 3"),
        ("width = 3", "width = 4"),
        ("width: 3", "height: 3"),
        ("width = 3", "3 = height"),
        ("x = 3", "y = 3"),
        ("x = 3", "x = 4"),
        ("x = 3", "4"),
        ("2x = 6", "2x = 8"),
        ("3 = 4", "5 = 6"),
        ("x = 1, y = 2", "x = 2, y = 1"),
        ("x > 3", "x < 3"),
        ("x > 3", "3"),
        ("x > 3", "x = 3"),
        ("1 < x < 3", "1 < x < 4"),
        ("x > 3", "x ≥ 3"),
        ("x^2 + 1", "x^2 - 1"),
        ("x^2", "2x"),
        ("x + y", "x + z"),
        (r"\sqrt{x^2}", "x"),
        (r"\sqrt{2}", "1.414"),
        ("3×4", "12"),
        ("3x4", "12"),
        ("1+1", "2"),
        ("10/5", "5"),
        (r"\frac{1}{0}", r"\frac{2}{0}"),
        (r"\sin x", r"\cos x"),
    ],
    "dates, times, names": [
        ("2024-01-02", "2021"),
        ("2024-01-02", "2024-02-01"),
        ("2024-1-2", "2021"),
        ("1/2/2024", "1/3/2024"),
        ("1/2/2024", "0.5/2024"),
        ("Jan 2, 2024", "Jan 3, 2024"),
        ("10:30", "10:31"),
        ("10:30", "10"),
        ("10:30 am", "10:30 pm"),
        ("1-3", "-2"),
        ("1-3", "1-4"),
        ("3-1", "2"),
        ("3:4", "0.75"),
        ("3:4", "4:3"),
        ("v1.10", "v1.1"),
        ("1.10.0", "1.1.0"),
        ("192.168.0.1", "192.168.0.2"),
        ("10 Main Street", "10 Oak Street"),
        ("10 Main Street", "12 Main Street"),
        ("10 Main Street", "10"),
        ("221B Baker Street, London", "221B Baker Street, Paris"),
        ("555-1234", "-679"),
        ("555-1234", "555-1243"),
        ("40.7 N, 74.0 W", "40.7 N, 74.0 E"),
        ("(40.7, -74.0)", "(40.7, 74.0)"),
        ("A5", "5A"),
        ("room 12", "12"),
    ],
}
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
    wanted, found = _verdicts(pairs), []
    thread = threading.Thread(target=lambda: found.extend(_verdicts(pairs)))
    thread.start()
    thread.join()
    assert found == wanted
