"""Sentences for users are English: turns of phrase that another language leaves behind, and plurals of one."""

import ast
import re
from pathlib import Path

import pytest
import torch

from app.rate import Rate
from latent_core.analysis.geometry import instance_similarity, spectrum
from latent_core.methods.deeplatent import DeepLatentOptions
from latent_core.settings import counted

ROOT = Path(__file__).parents[1]
FOREIGN = (
    r"\b[Tt]hat were\b",
    r"\bnot (kept )?any more\b",
    r"\bin some (seconds|minutes|hours)\b",
    r"\bis no (whole number|list|region)\b",
    r"\bare no list\b",
    r"\bcan under\b",
    r"\bfit each other\b",
    r"\b(informations|datas)\b",
    r"\bless (tokens|latents|blocks|rows|steps|images|samples)\b",
)
"""What is no English, or not what is meant."""


def sentences(path: Path) -> list[tuple[int, str]]:
    """Line and text of every string in a module that is no docstring."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    docstrings = {
        id(node.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            found.append((node.lineno, "".join(map(str, parts))))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            found.append((node.lineno, node.value))
    return found


@pytest.mark.parametrize("folder", ["app", "latent_core", "trainers", "spaces"])
def test_sentences_are_english(folder):
    problems = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        for line, text in sentences(path):
            for phrase in FOREIGN:
                if re.search(phrase, text):
                    problems.append(f"{path.relative_to(ROOT)}:{line}: {text[:100]}")
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize(("number", "words"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (1000, "1,000 rows")])
def test_one_is_no_plural(number, words):
    assert counted(number, "row") == words


def test_who_starts_too_many_runs_reads_english():
    rate = Rate(2, "runs", most=4, clock=lambda: 0.0)
    rate.take("tab")
    rate.take("tab")
    with pytest.raises(ValueError, match="^That is more than 2 runs in a minute; wait 30 seconds and try again"):
        rate.take("tab")


def test_numbers_that_do_not_fit_are_told_with_what_would():
    with pytest.raises(
        ValueError, match="^options.noise_floor is 0.3 and noise 0.1; 0 ≤ noise_floor ≤ noise must hold"
    ):
        DeepLatentOptions(width=32, noise=0.1, noise_floor=0.3)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_vectors_are_told_how_many_are_needed(count):
    with pytest.raises(ValueError, match=f"^A covariance needs at least 2 vectors, not {count}"):
        spectrum(torch.zeros(count, 4))
    with pytest.raises(ValueError, match=f"^A similarity between instances needs at least 2 of them, not {count}"):
        instance_similarity(torch.zeros(count, 3, 4))


@pytest.mark.parametrize(
    "phrase", ["That were more than 30 runs", "is not kept any more", "in some minutes", "less tokens"]
)
def test_what_is_looked_for_would_be_found(phrase):
    assert any(re.search(pattern, phrase) for pattern in FOREIGN)
