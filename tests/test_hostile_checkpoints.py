"""Checkpoint folders that lie: each is one sentence at the start, before anything is waited for, allocated or run."""

import json
import os
import signal
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from app.__main__ import prepared
from app.artifacts import Artifacts
from latent_core.checkpoints.embedded import EMBEDDED
from latent_core.checkpoints.loading import load, save
from latent_core.config import MethodConfig
from latent_core.evaluation.reference_bank import Bank
from tests.words import words_model, words_processor
from trainers.__main__ import main

EMBEDDING = "model.language_model.embed_tokens.weight"
INDEX = "model.safetensors.index.json"
Harm = Callable[[Path], object]


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    processor, folder = words_processor(), tmp_path_factory.mktemp("whole") / "tiny"
    save(folder, model=words_model(processor), processor=processor, config=MethodConfig(method="text"))
    return folder


def too_long(*_: object) -> None:
    raise TimeoutError


@pytest.fixture
def folder(whole, tmp_path) -> Iterator[Path]:
    """A copy by links. What would wait for ever is ended by an alarm."""
    (tmp_path / "tiny").mkdir()
    for path in whole.iterdir():
        os.symlink(path, tmp_path / "tiny" / path.name)
    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(60)
    yield tmp_path / "tiny"
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def instead(path: Path, make: Harm) -> None:
    path.unlink(missing_ok=True)
    make(path)


def text(file: str, content: str | bytes) -> Harm:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: instead(folder / file, lambda path: path.write_bytes(data))


def fields(file: str, **given: object) -> Harm:
    def harm(folder: Path) -> None:
        values = json.loads((folder / file).read_text())
        for name, value in given.items():
            *parents, last = name.split("__")
            target = values
            for parent in parents:
                target = target[parent]
            target[last] = value
        text(file, json.dumps(values))(folder)

    return harm


def header(content: object, body: int = 0, size: int | None = None) -> Harm:
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return text("model.safetensors", struct.pack("<Q", len(data) if size is None else size) + data + bytes(body))


def tensor(shape: list[int], offsets: list[int], dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Harm:
    def harm(folder: Path) -> None:
        stored = load_file(folder / "model.safetensors")
        change(stored)
        instead(folder / "model.safetensors", lambda path: save_file(stored, path, metadata={"format": "pt"}))

    return harm


def tokenizer(change: Callable[[dict], object]) -> Harm:
    def harm(folder: Path) -> None:
        values = json.loads((folder / "tokenizer.json").read_text())
        change(values)
        text("tokenizer.json", json.dumps(values))(folder)

    return harm


def place(file: str, make: Harm) -> Harm:
    return lambda folder: instead(folder / file, make)


DEEP = '{"a":' * 100_000
CASES: dict[str, tuple[Harm, str]] = {
    "layers": (
        fields("config.json", text_config__num_hidden_layers=10**6, text_config__layer_types=None),
        "at most 1",
    ),
    "depth": (fields("config.json", vision_config__depth=10**6), "depth 1000000; at most 1,000"),
    "width": (fields("config.json", text_config__intermediate_size=10**9), "intermediate_size 1000000000; at most"),
    "wide": (fields("config.json", text_config__intermediate_size=10**6), "parameters, but its files hold"),
    "negative": (fields("config.json", text_config__intermediate_size=-1), "intermediate_size -1; it must be"),
    "nan": (fields("config.json", text_config__rms_norm_eps=float("nan")), "NaN is no number"),
    "activation": (fields("config.json", text_config__hidden_act="evil"), "No model can be built .* KeyError"),
    "heads": (fields("config.json", vision_config__num_heads=7), "must be a multiple"),
    "window": (fields("config.json", vision_config__window_size=1), "window_size 1, less than"),
    "empty": (text("config.json", "{}"), "^config.json of tiny "),
    **{f"deep {file}": (text(file, DEEP), f"^{file} of tiny is not JSON") for file in ("method.json", "config.json")},
    "deep generation": (text("generation_config.json", DEEP), "^generation_config.json of tiny is not JSON"),
    "deep tokenizer": (text("tokenizer.json", DEEP), "^tokenizer.json of tiny is not JSON"),
    "list": (text("special_tokens_map.json", "[]"), "special_tokens_map.json of tiny is not a JSON object"),
    "long": (text("tokenizer.json", b" " * 64_000_001), "has 64,000,001 bytes; at most 64,000,000"),
    "folder": (place("method.json", Path.mkdir), "method.json of tiny is no file that can be read"),
    "pipe": (place("tokenizer_config.json", os.mkfifo), "tokenizer_config.json of tiny is no file"),
    "pipe of tensors": (place("method.safetensors", os.mkfifo), "method.safetensors of tiny is no file"),
    "endless": (place("chat_template.jinja", lambda path: os.symlink("/dev/zero", path)), "jinja of tiny is no file"),
    "loop": (place("config.json", lambda path: os.symlink(path, path)), "config.json of tiny is no file"),
    "overlap": (header({EMBEDDING: tensor([2], [0, 8]), "b": tensor([2], [4, 12])}, 12), "cannot be read"),
    "beyond": (header({EMBEDDING: tensor([2, 2], [0, 16])}, 4), "cannot be read"),
    "huge header": (header({}, size=10**18), "model.safetensors of tiny cannot be read"),
    "dtype": (header({EMBEDDING: tensor([2], [0, 8], "EVIL")}, 8), "cannot be read"),
    "overflow": (header({EMBEDDING: tensor([2**62, 4], [0, 16])}, 16), "cannot be read"),
    "no rows": (header({EMBEDDING: tensor([0, 64], [0, 0])}), "the model only 0 rows"),
    "scalar": (header({EMBEDDING: tensor([], [0, 4])}, 4), "has shape \\[\\]; rows of numbers"),
    "nothing": (header({}), "tiny has no input embedding"),
    "shape": (tensors(lambda t: t.update({max(t): torch.zeros(3, 3)})), "1 misshapen"),
    "missing": (tensors(lambda t: t.pop(max(t))), "1 missing"),
    "more": (tensors(lambda t: t.update(evil=torch.zeros(3))), "1 unexpected"),
    "parameters": (place("method.safetensors", lambda p: save_file({"a": torch.zeros(3)}, p)), "does not fit"),
    "up": (text(INDEX, json.dumps({"weight_map": {EMBEDDING: "../tiny/model.safetensors"}})), "which is no file of"),
    "absolute": (text(INDEX, json.dumps({"weight_map": {EMBEDDING: "/etc/passwd"}})), "'/etc/passwd', which is no"),
    "index": (text(INDEX, json.dumps({"weight_map": [1]})), f"{INDEX} of tiny cannot be read"),
    "nonsense": (text("tokenizer.json", "nonsense"), "^tokenizer.json of tiny is not JSON"),
    "id": (tokenizer(lambda t: t["model"]["vocab"].update(zz=2**31)), "has an id below 0 or above"),
    "special": (fields("tokenizer_config.json", eos_token={"a": 1}), "tokenizer in tiny cannot be read"),
    "decoder": (fields("tokenizer_config.json", added_tokens_decoder=[1]), "tokenizer in tiny cannot be read"),
    "normaliser": (
        tokenizer(lambda t: t.update(normalizer={"type": "Replace", "pattern": {"String": ""}, "content": "x"})),
        "changes text by Replace",
    ),
    "patch": (fields("preprocessor_config.json", patch_size=10**9), "has patch_size 1000000000, but its config.json"),
    "size": (fields("preprocessor_config.json", size=[1, 2]), "preprocessor_config.json in tiny: size is None"),
    "enlarged": (fields("preprocessor_config.json", size=dict(shortest_edge=10**15, longest_edge=10**16)), "enlarged"),
    "bright": (fields("preprocessor_config.json", image_std=[1e-300] * 3), "make pixels infinite"),
    "whole": (tensors(lambda t: t.update({max(t): t[max(t)].long()})), "is stored in I64; only BF16, F16"),
    "system": (fields("method.json", system="x" * 10**6), "system has 1,000,000 characters"),
    "end": (fields("generation_config.json", eos_token_id=10**12), "has eos_token_id 1000000000000; ids of tokens"),
    "ends": (fields("generation_config.json", eos_token_id=[1, "x"]), "has eos_token_id \\[1, 'x'\\]"),
    "method": (fields("method.json", method="lvr", latents={"default": 9999}), "method.json of tiny cannot be used"),
    "unknown": (fields("method.json", evil=1), "unknown field 'evil'"),
}


@pytest.mark.parametrize("name", CASES)
def test_a_folder_that_lies_is_refused_in_a_sentence(name, folder):
    harm, words = CASES[name]
    harm(folder)
    with pytest.raises(ValueError, match=words) as caught:
        load(folder)
    assert (
        "\n" not in str(caught.value) and len(str(caught.value)) < 600 and str(folder.parent) not in str(caught.value)
    )


@pytest.mark.parametrize("name", ["depth", "pipe", "up", "nonsense"])
def test_every_command_refuses_it_likewise(name, folder, capsys):
    harm, words = CASES[name]
    harm(folder)
    with pytest.raises(ValueError, match=words):
        prepared(str(folder))
    for given in (
        ["ground", str(folder)],
        ["run", "glyph-text", f"init={folder}", f"output_dir={folder.parent / 'r'}"],
    ):
        assert main(given) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: ") and error.endswith(".")


def test_a_chat_template_is_never_run(folder):
    """Questions are put together here, so that what a template would do never happens."""
    text("chat_template.jinja", "{% for i in range(10**12) %}{{ ''.__class__.__mro__ }}{% endfor %}")(folder)
    assert load(folder).run(Image.new("RGB", (24, 16)), "Which mark?", max_new_tokens=2).finish.tokens == 2


@pytest.mark.parametrize(
    "content",
    ["[]", DEEP, "nonsense", "{}", '{"command": "x", "latents": 1, "train_samples": 1, "steps": 1, "read": {"a": 1}}'],
)
def test_a_report_that_lies_is_left_out(content, tmp_path):
    (tmp_path / "depict.json").write_text(content)
    (tmp_path / "grounding.json").write_text(content)
    assert Artifacts(["mine"], {"mine": str(tmp_path)}).measured("mine") == {}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t, _: t["vectors"].fill_(float("nan")), "nan or infinite"),
        (lambda t, _: t.update(vectors=t["vectors"][:5]), "do not fit together"),
        (lambda _, notes: notes.pop("measured"), "what was measured"),
    ],
)
def test_a_bank_that_lies_is_refused(change, words, tmp_path):
    file = EMBEDDED / "glyph-monet/bank.safetensors"
    with safe_open(file, "pt") as stored:
        content = json.loads(stored.metadata()["bank"])
    parts = load_file(file)
    change(parts, content["notes"])
    save_file(parts, tmp_path / "bank.safetensors", {"bank": json.dumps(content)})
    with pytest.raises(ValueError, match=words):
        Bank.load(tmp_path / "bank.safetensors")
