"""Loading and saving of checkpoints: by name, folder or Hub id, strictly, and whole or not at all.

A folder holds `config.json` and `model.safetensors` as transformers writes them (so that plain transformers loads the
backbone), `method.json` (config.py), `method.safetensors` for methods with parameters of their own, the tokenizer and
image processor, and for readers `metrics.json` and `README.md`. Nothing is unpickled, no code of a checkpoint is run.
"""

import contextlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from latent_core.checkpoints import embedded, placement
from latent_core.checkpoints.hub import INDEX, TENSORS, TEXT, fetch, shards
from latent_core.checkpoints.placement import Placement
from latent_core.checkpoints.published import FINAL, PLAIN, PUBLISHED, full_name
from latent_core.config import MethodConfig
from latent_core.files import write_folder
from latent_core.finite import not_finite, shortened
from latent_core.methods import LatentMethod, build_method
from latent_core.model.backbone import Backbone
from latent_core.model.backbones import BACKBONES, wrap
from latent_core.model.model_config import check_buildable, check_fit, read_model_config, read_object
from latent_core.model.processor import Processor
from latent_core.reasoner import Reasoner
from latent_core.records import nearest, to_json
from latent_core.settings import check, short

NUMBERS = ("BF16", "F16", "F32", "F64")
MOST_TEXT = 64_000_000
"""Bytes of a file that is not of tensors; Qwen's tokenizer.json has 11 million."""
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_KNOWN = "the only checkpoints known without one: " + ", ".join(
    [*(f"plain {backbone.title}" for backbone in BACKBONES.values()), *PUBLISHED]
)
log = logging.getLogger("inscape")


def load(
    name: str | os.PathLike[str], *, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> Reasoner:
    """A checkpoint by embedded name, local folder, published name (published.py) or Hub id, ready to answer.

    A plain backbone, such as Qwen/Qwen2.5-VL-7B-Instruct, answers in text alone. Without `device` and `dtype` both
    are chosen from its size and the machine (placement.py); with one of them, the other is the CPU or float32. Raises
    ValueError for an unknown name, for files that are missing, corrupt or do not fit together, and where memory does
    not suffice.
    """
    folder, called = find(name), full_name(name)
    config, processor = read_parts(folder, called)
    if device is None and dtype is None:
        chosen = placement.choose(called, stored_parameters(folder), placement.machine())
        device, dtype = chosen.device, chosen.dtype
        log.info("%s", chosen.reason)
    device, dtype = device or "cpu", dtype or torch.float32
    model = load_model(folder, dtype=dtype).to(device)
    method = build_method(config, processor.token_id)
    load_parameters(method, folder)
    return Reasoner(
        name=called,
        backbone=wrap(model).eval(),
        processor=processor,
        method=method.to(device, dtype).eval(),
        config=config,
    )


def read_parts(folder: Path, name: str) -> tuple[MethodConfig, Processor]:
    """The config and processor of a checkpoint, read and checked before its weights are.

    Raises ValueError for what is missing, corrupt or does not fit together.
    """
    _check_files(folder)
    config, model_config = read_config(folder, name), read_model_config(folder)
    backbone, limits = BACKBONES[model_config.model_type], config.image
    processor = Processor.load(folder, backbone.chat, min_pixels=limits.min_pixels, max_pixels=limits.max_pixels)
    rows = _embedding_rows(folder, backbone)
    if config is PLAIN:
        _check_plain(name, processor, backbone)
    if name in PUBLISHED:
        PUBLISHED[name].check_vocabulary(processor.token_id, rows)
    if len(processor.tokenizer) > rows:
        raise ValueError(f"{name}: the tokenizer has {len(processor.tokenizer)} tokens, the model only {rows} rows.")
    check_fit(model_config, processor, name)
    return config, processor


def planned(name: str | os.PathLike[str]) -> Placement:
    """The placement that `load` would choose; known of a published checkpoint before anything of it is fetched.

    Raises ValueError like `find`, and where memory does not suffice.
    """
    called = full_name(name)
    published = called in PUBLISHED and not Path(name).is_dir()
    parameters = PUBLISHED[called].parameters if published else stored_parameters(find(name))
    return placement.choose(called, parameters, placement.machine())


def find(name: str | os.PathLike[str]) -> Path:
    """The folder of a checkpoint, fetched from the Hub where it is a published one or a Hub id.

    A run of the trainers (`runs/mine`) has it in a folder of its own.
    """
    if str(name) in embedded.available():
        return embedded.EMBEDDED / name
    if Path(name).is_dir():
        return Path(name) / FINAL if (Path(name) / FINAL).is_dir() else Path(name)
    if published := PUBLISHED.get(full_name(name)):
        return fetch(published.repository, published.subfolder)
    if not _HUB_ID.fullmatch(str(name)):
        known = [*embedded.available(), *PUBLISHED]
        raise ValueError(f"There is no checkpoint or folder {str(name)!r}{nearest(str(name), known)}")
    return fetch(str(name))


def load_model(folder: str | os.PathLike[str], *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """The backbone's model of a checkpoint folder, in evaluation mode.

    The embedding may have more or fewer rows than config.json says, as released fine-tunes do. Raises ValueError that
    names whatever else is missing, unexpected, misshapen, corrupt or not finite.
    """
    folder = Path(folder)
    _check_files(folder)
    try:
        config = read_model_config(folder)
        backbone = BACKBONES[config.model_type]
        config.text_config.vocab_size = _embedding_rows(folder, backbone)
        check_buildable(config, stored_parameters(folder), folder.name)
        model, info = backbone.read(folder, config, dtype)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{folder.name} cannot be read: {error}") from error
    except (TypeError, AttributeError, KeyError) as error:  # of generation_config.json, which transformers trusts
        raise ValueError(f"{folder.name} cannot be loaded: {' '.join(str(error).split())}.") from error
    problems = [
        f"{len(info[keys])} {word} ({', '.join(str(key) for key in sorted(info[keys])[:3])}, …)"
        for keys, word in (
            ("missing_keys", "missing"),
            ("unexpected_keys", "unexpected"),
            ("mismatched_keys", "misshapen"),
        )
        if info[keys]
    ]
    if problems:
        raise ValueError(f"The tensors of {folder.name} do not fit its config.json: {'; '.join(problems)}.")
    _check_finite(folder, model.named_parameters())
    eos_ids = model.generation_config.eos_token_id
    are_tokens = all(type(id) is int and 0 <= id < config.text_config.vocab_size for id in _listed(eos_ids))
    check(
        are_tokens,
        f"generation_config.json of {folder.name} has eos_token_id {short(eos_ids)}; ids of tokens are needed.",
    )
    return model.eval()


def save(
    folder: str | os.PathLike[str],
    *,
    model: PreTrainedModel,
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
    """The MethodConfig of method.json, or the known one of a published checkpoint or a plain backbone.

    Raises ValueError for none of these; whether a backbone is plain also depends on its tokenizer (`_check_plain`).
    """
    if (folder / "method.json").exists():
        return MethodConfig.read(folder)
    if name in PUBLISHED:
        return PUBLISHED[name].config
    model_type = read_object(folder / "config.json").get("model_type")
    check(model_type in tuple(BACKBONES), f"{name} has no method.json; {_KNOWN}.")
    return PLAIN


def _check_plain(name: str, processor: Processor, backbone: type[Backbone]) -> None:
    """Raises ValueError where a tokenizer has control tokens beyond those of the backbone: a fine-tune's own."""
    for token in processor.control_tokens:
        check(
            token in backbone.control_tokens,
            f"{name} has no method.json, and its tokenizer adds {token} to those of a plain {backbone.title}; "
            f"{_KNOWN}.",
        )


def _check_files(folder: Path) -> None:
    """Raises ValueError where config.json or a file of tensors is not there, or where one is what nobody should open.

    What reads them afterwards may wait for a pipe for ever, take a list for an object or nest without bounds.
    """
    for path in folder.iterdir():
        if any(fnmatch(path.name, pattern) for pattern in (*TEXT, *TENSORS)):
            check(path.is_file(), f"{path.name} of {folder.name} is no file that can be read.")
        if path.name in TEXT:
            size = path.stat().st_size
            check(
                size <= MOST_TEXT, f"{path.name} of {folder.name} has {size:,} bytes; at most {MOST_TEXT:,} are read."
            )
        if path.name in TEXT and path.suffix == ".json":
            read_object(path)
    for needed in ["config.json", *_tensor_files(folder)]:
        if not (folder / needed).is_file():
            raise ValueError(f"{folder.name} has no {needed}.")


def _tensor_files(folder: Path) -> dict[str, list[str]]:
    """The files of the backbone's tensors, those that the index names or one; which tensors, as far as it says."""
    return shards(folder, folder.name) if (folder / INDEX).exists() else {"model.safetensors": []}


def stored_parameters(folder: Path) -> int:
    """Numbers in the backbone's stored tensors, from the headers of their files."""
    _check_files(folder)
    count = 0
    for name in _tensor_files(folder):
        with _opened(folder, name) as tensors:
            for key in tensors.keys():  # noqa: SIM118, not a dict
                stored = tensors.get_slice(key)
                dtype = stored.get_dtype()
                check(
                    dtype in NUMBERS,
                    f"{key} of {folder.name} is stored in {dtype}; only {', '.join(NUMBERS)} can be loaded.",
                )
                count += math.prod(stored.get_shape())
    return count


def _embedding_rows(folder: Path, backbone: type[Backbone]) -> int:
    """Rows of the stored input embedding."""
    names = backbone.embedding_names
    for name, listed in _tensor_files(folder).items():
        if listed and not set(listed) & set(names):
            continue
        with _opened(folder, name) as tensors:
            for stored in set(tensors.keys()) & set(names):
                shape = tensors.get_slice(stored).get_shape()
                check(
                    len(shape) == 2, f"{stored} of {folder.name} has shape {short(shape)}; rows of numbers are needed."
                )
                return shape[0]
    raise ValueError(f"{folder.name} has no input embedding ({' or '.join(names)}).")


def _listed(value: object) -> list[object]:
    return [] if value is None else value if isinstance(value, list) else [value]


@contextlib.contextmanager
def _opened(folder: Path, name: str) -> Iterator[safe_open]:
    """A file of tensors. Raises ValueError for one that is corrupt."""
    try:
        with safe_open(folder / name, "pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{name} of {folder.name} cannot be read: {error}") from error


def load_parameters(method: LatentMethod, folder: Path) -> None:
    """Loads the method's own parameters, strictly."""
    path = folder / "method.safetensors"
    try:
        stored = load_file(path) if path.exists() else {}
        method.load_state_dict(stored, strict=True)
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"method.safetensors of {folder.name} does not fit: {reason}") from error
    _check_finite(folder, stored.items())


def _check_finite(folder: Path, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Raises ValueError that names the tensors in which a training that diverged has left nan or infinity."""
    if bad := not_finite(tensors):
        raise ValueError(
            f"The weights of {folder.name} are nan or infinite in {shortened(bad)}, as a run that diverged leaves "
            "them; take an earlier checkpoint."
        )


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
