"""What is known of the published checkpoints agrees with their backbone and with the methods here."""

from pathlib import Path

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from latent_core.checkpoints.published import PUBLISHED, full_name
from latent_core.methods import METHODS, build_method
from latent_core.model.qwen2_5_vl_facts import FIRST_ADDED, ROWS_7B
from trainers.planning.architectures import published as architectures

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_method_is_built_from_its_entry(name):
    entry = PUBLISHED[name]
    ids = {token: FIRST_ADDED + number for number, token in enumerate(entry.tokens)}
    method = build_method(entry.config, ids.__getitem__)
    assert method.name in METHODS and method.open_id in ids.values() and method.close_id in ids.values()
    assert not method.state_dict()  # the published repositories hold a plain backbone
    assert entry.config.pad_token in ids
    assert FIRST_ADDED + len(ids) <= entry.rows <= ROWS_7B


@pytest.mark.parametrize("name", ["NOVAglow646/Monet-7B", "vincentleebang/LVR-7B"])
def test_the_number_of_parameters_is_that_of_the_backbone(name):
    entry, config = PUBLISHED[name], architectures()["Qwen/Qwen2.5-VL-7B-Instruct"]
    config.text_config.vocab_size = entry.rows
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    assert entry.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert entry.weights("fp32") == 2 * entry.weights("bf16") == 4 * entry.parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_facts_that_nobody_published_are_owned_up_to(name):
    entry = PUBLISHED[name]
    assert entry.unknown and all(fact in entry.summary() for fact in entry.unknown)
    assert "not known for the weights" in entry.summary()
    assert entry.config.provenance.keys() == {"paper", "code"}


@pytest.mark.parametrize("name", ["NOVAglow646/Monet-7B", "vincentleebang/LVR-7B"])
def test_the_code_read_is_that_of_the_fixtures(name):
    """Conventions here and golden numbers come from the same commit of the reference."""
    entry = PUBLISHED[name]
    repository, _, commit = entry.config.provenance["code"].partition(" at ")
    readme = (FIXTURES / f"{entry.config.method}_seed0" / "README.md").read_text()
    assert repository in readme and f"`{commit}" in readme


def test_short_names():
    assert full_name("Monet-7B") == "NOVAglow646/Monet-7B" and full_name("LVR-7B") == "vincentleebang/LVR-7B"
    assert full_name("Monet-SFT-7B/stage2") == "NOVAglow646/Monet-SFT-7B/stage2"
    for other in ("NOVAglow646/Monet-7B", "glyph-monet", "stage2", "7B", ""):
        assert full_name(other) == other


def test_stages_are_subfolders_of_one_repository():
    stages = [entry for entry in PUBLISHED.values() if entry.subfolder]
    assert [entry.subfolder for entry in stages] == ["stage1", "stage2", "stage3"]
    assert {entry.repository for entry in stages} == {"NOVAglow646/Monet-SFT-7B"}
