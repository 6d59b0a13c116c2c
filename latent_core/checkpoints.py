"""Checkpoints by name, folder or Hub id: loaded strictly, saved whole or not at all.

A folder holds `config.json` and `model.safetensors` as transformers writes them (so that plain transformers loads the
backbone), `method.json` (config.py), `method.safetensors` for methods with parameters of their own, the tokenizer and
image processor, and for readers `metrics.json` and `README.md`. Nothing is unpickled, no code of a checkpoint is run.
"""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from latent_core import embedded
from latent_core.backbone import Backbone
from latent_core.config import LatentRange, MethodConfig, PixelLimits, Sampling
from latent_core.files import write_folder
from latent_core.methods import LatentMethod, build_method
from latent_core.processor import Processor
from latent_core.reasoner import Reasoner
from latent_core.records import from_json, nearest, to_json

KNOWN: dict[str, MethodConfig] = {
    "NOVAglow646/Monet-7B": MethodConfig(
        method="monet",
        open_token="<abs_vis_token>",
        close_token="</abs_vis_token>",
        pad_token="<abs_vis_token_pad>",
        convention="start_overwritten",  # as its inference code feeds; its training code and figure are start_fed
        latents=LatentRange(default=10, min=0, max=16),
        system=(
            "You are a helpful multimodal assistant. You are required to answer the question based on the image "
            "provided. Put your final answer in \\boxed{}."
        ),
        sampling=Sampling(temperature=0.1, top_k=50, top_p=0.8, repetition_penalty=1.01, max_new_tokens=2048),
        image=PixelLimits(min_pixels=256 * 28 * 28, max_pixels=8192 * 28 * 28),
        provenance={"paper": "arXiv 2511.21395", "code": "NOVAglow646/Monet at 0893999"},
    ),
}
"""Published checkpoints on the Hub, which have no method.json."""

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ("*.safetensors", "*.json", "*.jinja", "*.txt")
"""All that is fetched from the Hub: tensors and text, never pickles or code."""
_EMBEDDINGS = ("model.embed_tokens.weight", "model.language_model.embed_tokens.weight")
"""The embedding's name in older and newer checkpoints."""


def load(
    name: str | os.PathLike[str], *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32
) -> Reasoner:
    """A checkpoint by embedded name, local folder or Hub id, ready to answer.

    Raises ValueError for an unknown name and for files that are missing, corrupt or do not fit together.
    """
    folder = find(name)
    config = read_config(folder, str(name))
    processor = Processor.load(folder, min_pixels=config.image.min_pixels, max_pixels=config.image.max_pixels)
    model = load_model(folder, dtype=dtype).to(device)
    rows = model.get_input_embeddings().num_embeddings
    if len(processor.tokenizer) > rows:
        raise ValueError(f"{name}: the tokenizer has {len(processor.tokenizer)} tokens, the model only {rows} rows.")
    method = build_method(config, processor.token_id)
    load_parameters(method, folder)
    return Reasoner(
        # a trace carries the name to other machines, where the path to a folder says nothing and tells too much
        name=folder.name if Path(name).is_dir() else str(name),
        backbone=Backbone(model).eval(),
        processor=processor,
        method=method.to(device, dtype).eval(),
        config=config,
    )


def find(name: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint, fetched from the Hub where it is a Hub id."""
    if str(name) in embedded.available():
        return embedded.EMBEDDED / name
    if Path(name).is_dir():
        return Path(name)
    if not _HUB_ID.fullmatch(str(name)):
        known = [*embedded.available(), *KNOWN]
        raise ValueError(f"There is no checkpoint or folder {str(name)!r}{nearest(str(name), known)}")
    try:
        return Path(snapshot_download(str(name), allow_patterns=list(_FILES)))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ValueError(f"{name} is no folder here and could not be fetched from the Hub: {reason}") from error


def load_model(
    folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32
) -> Qwen2_5_VLForConditionalGeneration:
    """The backbone of a checkpoint folder, in evaluation mode.

    The embedding may have more or fewer rows than config.json says, as released fine-tunes do. Raises ValueError that
    names whatever else is missing, unexpected, misshapen or corrupt.
    """
    folder = Path(folder)
    for needed in ("config.json", "model.safetensors"):
        if not (folder / needed).exists() and not (folder / f"{needed}.index.json").exists():
            raise ValueError(f"{folder.name} has no {needed}.")
    try:
        config = Qwen2_5_VLConfig.from_pretrained(folder, local_files_only=True)
        config.text_config.vocab_size = _embedding_rows(folder)
        model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder,
            config=config,
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    except (SafetensorError, OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder.name} cannot be read: {error}") from error
    problems = [
        f"{len(info[kind])} {word} ({', '.join(str(key) for key in sorted(info[kind])[:3])}, …)"
        for kind, word in (
            ("missing_keys", "missing"),
            ("unexpected_keys", "unexpected"),
            ("mismatched_keys", "misshapen"),
        )
        if info[kind]
    ]
    if problems:
        raise ValueError(f"The tensors of {folder.name} do not fit its config.json: {'; '.join(problems)}.")
    return model.eval()


def save(
    folder: str | os.PathLike[str],
    *,
    model: Qwen2_5_VLForConditionalGeneration,
    processor: Processor,
    config: MethodConfig,
    method: LatentMethod | None = None,
    metrics: Mapping[str, object] | None = None,
    readme: str | None = None,
) -> None:
    """Writes a checkpoint folder, replacing a former one only once the new one is complete.

    Raises OSError with a plain sentence where it cannot be written; the former one is then untouched. Raises
    ValueError where `folder` holds something else than a checkpoint, which replacing it would delete.
    """
    folder = Path(folder)
    vacant = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not vacant and not (folder / "method.json").exists():
        raise ValueError(f"{folder} holds something that is no checkpoint; choose a new or an empty folder.")

    def fill(draft: Path) -> None:
        model.save_pretrained(draft)
        processor.save(draft)
        _write_json(draft / "method.json", to_json(config))
        if method is not None and (parameters := method.state_dict()):
            save_file({name: tensor.contiguous() for name, tensor in parameters.items()}, draft / "method.safetensors")
        if metrics is not None:
            _write_json(draft / "metrics.json", metrics)
        if readme is not None:
            (draft / "README.md").write_text(readme)

    write_folder(folder, fill)


def read_config(folder: Path, name: str) -> MethodConfig:
    """What method.json says, or what is known of a published checkpoint. Raises ValueError for neither."""
    path = folder / "method.json"
    if not path.exists():
        if name in KNOWN:
            return KNOWN[name]
        raise ValueError(f"{name} has no method.json; the only checkpoints known without one: {', '.join(KNOWN)}.")
    try:
        return from_json(MethodConfig, json.loads(path.read_text()), "method.json")
    except ValueError as error:
        raise ValueError(f"method.json of {folder.name} cannot be used: {error}") from error


def _embedding_rows(folder: Path) -> int:
    """Rows of the stored input embedding."""
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = json.loads(index.read_text())["weight_map"]
        names = [name for name in _EMBEDDINGS if name in shards]
        file = folder / shards[names[0]] if names else folder / "model.safetensors"
    else:
        file = folder / "model.safetensors"
    with safe_open(file, "pt") as tensors:
        stored = set(tensors.keys())
        for name in _EMBEDDINGS:
            if name in stored:
                return tensors.get_slice(name).get_shape()[0]
    raise ValueError(f"{folder.name} has no input embedding ({' or '.join(_EMBEDDINGS)}).")


def load_parameters(method: LatentMethod, folder: Path) -> None:
    """The method's own parameters, strictly."""
    path = folder / "method.safetensors"
    try:
        stored = load_file(path) if path.exists() else {}
        method.load_state_dict(stored, strict=True)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"method.safetensors of {folder.name} does not fit: {reason}") from error


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
