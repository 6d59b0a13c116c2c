"""A plain Qwen2.5-VL, as transformers saves it: the baseline of every checkpoint that was trained from one."""

import json

import pytest
import torch
from huggingface_hub.utils import close_session
from PIL import Image
from safetensors.torch import load_file, save_file

from app.__main__ import prepared
from app.ask import opening
from latent_core.checkpoints.loading import load
from latent_core.checkpoints.published import PLAIN, PUBLISHED
from latent_core.model.qwen2_5_vl_facts import CONTROL_TOKENS, FIRST_ADDED
from tests.hub_downloads import online, serving
from tests.twins import QWEN_CONTROL, QWEN_TEXT
from tests.words import PLAIN as TOKENS
from tests.words import words_model, words_processor

NAME = "Qwen/Qwen2.5-VL-7B-Instruct"
RED = Image.new("RGB", (24, 16), (200, 30, 30))
QUESTION = "Which mark is on the blue square?"


def write(folder, special=TOKENS):
    """A tiny one, written by transformers alone."""
    processor = words_processor(special=special)
    model = words_model(processor)
    for part in (model, processor.tokenizer, processor.image_processor):
        part.save_pretrained(folder)
    return model, processor


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "plain")
    return tmp_path / "plain"


def test_it_answers_in_words_as_transformers_does(tmp_path):
    model, processor = write(tmp_path / "plain")
    reasoner = load(tmp_path / "plain")
    assert reasoner.name == "plain" and reasoner.config == PLAIN and not reasoner.method.has_latents
    trace = reasoner.run(RED, QUESTION, max_new_tokens=8)
    assert trace.source.method == "text" and not trace.blocks and trace.system == "You are a helpful assistant."

    content = [{"type": "image"}, {"type": "text", "text": QUESTION}]
    text = processor.tokenizer.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    prompt = reasoner.prompt(RED, QUESTION)
    merged = "<|image_pad|>" * int((prompt.input_ids == processor.image_token_id).sum())
    ids = processor.tokenizer(text.replace("<|image_pad|>", merged), return_tensors="pt").input_ids
    expected = model.generate(
        input_ids=ids,
        mm_token_type_ids=(ids == processor.image_token_id).int(),
        pixel_values=prompt.pixel_values,
        image_grid_thw=prompt.grid_thw,
        max_new_tokens=8,
        do_sample=False,
    )
    assert [token.token_id for token in trace.tokens] == expected[0, ids.shape[1] :].tolist()


def test_it_is_fetched_from_the_hub(folder, tmp_path, monkeypatch):
    with serving({NAME: folder}) as server:
        online(monkeypatch, server.url, tmp_path / "cache")
        reasoner = load(NAME)
        assert reasoner.name == NAME and reasoner.config.method == "text"
        assert prepared(NAME) == {NAME: NAME}
        close_session()


def test_the_page_opens_with_its_settings_before_it_is_loaded(folder):
    assert prepared(str(folder)) == {"plain": str(folder)}
    assert opening("plain", str(folder)) == (PLAIN.latents, PLAIN.sampling)
    assert opening(NAME, NAME)[1].max_new_tokens == 128  # a Hub id: not known by then


@pytest.mark.parametrize("added", ["<abs_vis_token>", "<|lvr_start|>", "<think>"])
def test_a_fine_tune_with_tokens_of_its_own_is_none(tmp_path, added):
    write(tmp_path / "tuned", [*TOKENS, added])
    with pytest.raises(
        ValueError,
        match=f"^tuned has no method.json, and its tokenizer adds {added.replace('|', '.')} to those of a plain "
        "Qwen2.5-VL; the only checkpoints known without one: plain Qwen2.5-VL, NOVAglow646/Monet-7B",
    ):
        load(tmp_path / "tuned")


def test_a_fine_tune_with_tensors_of_its_own_is_none(folder):
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"lvr_head.weight": torch.zeros(2)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="The tensors of plain do not fit .* 1 unexpected .lvr_head.weight"):
        load(folder)


@pytest.mark.parametrize("kind", [None, "llama", ["qwen2_5_vl"]])
def test_another_model_is_none(folder, kind):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": kind}))
    with pytest.raises(ValueError, match="^plain has no method.json; the only checkpoints known without one: "):
        load(folder)


def test_control_tokens_are_those_of_the_published_tokenizer():
    assert list(CONTROL_TOKENS) == QWEN_CONTROL and QWEN_TEXT + len(CONTROL_TOKENS) == FIRST_ADDED
    assert not any(set(entry.tokens) & set(CONTROL_TOKENS) for entry in PUBLISHED.values())
