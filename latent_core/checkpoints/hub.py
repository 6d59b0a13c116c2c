"""Download of a checkpoint from the Hub: tensors and text only, whole and unaltered or not at all.

Files lie in huggingface_hub's own cache. What is there already is not fetched again, a connection that breaks off is
taken up where it broke, and a file appears under its name only when it is complete. Its content is compared with the
checksum by which the Hub names it, once, before it is first used.
"""

import contextlib
import errno
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,  # of the HTTP library underneath, which is not the same in all versions
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from latent_core.files import write_file
from latent_core.settings import check, short

TEXT = (
    "config.json",
    "generation_config.json",
    "method.json",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.json",
    "chat_template.jinja",
)
TENSORS = ("model.safetensors", "model-*.safetensors", "method.safetensors")
"""With TEXT all that is ever fetched: no pickles, no code."""
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
INDEX = "model.safetensors.index.json"
CHECKED = "inscape-checked.json"
"""In a repository's cache folder: names of the files whose content was found right."""
ABANDONED = 120
"""Seconds without a byte after which a half file is abandoned: huggingface_hub itself gives up earlier."""
_SUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_PIECE = 1 << 24


def fetch(repository: str, subfolder: str = "") -> Path:
    """The folder of a checkpoint in the local cache, complete and checked.

    Where the Hub cannot be reached, what was fetched before will do. Raises ValueError with one sentence that names
    what is wrong and what helps; nothing half-written is then taken for whole later.
    """
    name, prefix = "/".join(filter(None, (repository, subfolder))), f"{subfolder}/" if subfolder else ""
    try:
        info = HfApi().model_info(repository, files_metadata=True)
    except HFValidationError as error:
        raise ValueError(f"{repository!r} is not the name of a repository: {_first_line(error)}.") from error
    except (HTTPError, OSError) as error:
        if not _is_stranger(error) and isinstance(error, HfHubHTTPError) and error.response.status_code < 500:
            raise ValueError(_refusal(repository, error)) from error
        return _fetched_before(repository, name, prefix, error)
    except (ValueError, KeyError, TypeError) as error:  # an answer, but none that the Hub gives
        return _fetched_before(repository, name, prefix, error)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    text, tensors = (_matching(sizes, prefix, patterns) for patterns in (TEXT, TENSORS))
    _check_listing(name, prefix, sizes, text, tensors)
    commit = str(info.sha)
    snapshot = _download(repository, name, text, commit)  # small, and says which shards there should be
    _check_shards(name, snapshot / subfolder, [file.removeprefix(prefix) for file in tensors])
    files = [*text, *tensors]
    _check_disk(name, sum(sizes[file] for file in files if not _in_cache(repository, file, commit)))
    snapshot = _download(repository, name, files, commit)
    _check_content(name, snapshot, files)
    return snapshot / subfolder


def _in_cache(repository: str, file: str, commit: str) -> Path | None:
    """The path of a file in the local cache; None where it was not fetched yet."""
    path = try_to_load_from_cache(repository, file, revision=commit)
    return Path(path) if isinstance(path, str) else None  # it may also know that the Hub has no such file


def _download(repository: str, name: str, files: list[str], commit: str) -> Path:
    """The snapshot folder with these files of the newest `commit`, fetched where one of them is not in the cache yet.

    One at a time, so that an interruption costs one shard and not all.
    """
    cached = [_in_cache(repository, file, commit) for file in files]
    if None not in cached:
        return cached[0].parents[files[0].count("/")]
    _clear_leftovers(repository)
    try:
        return Path(snapshot_download(repository, allow_patterns=files, max_workers=1))
    except (HTTPError, OSError, ValueError) as error:
        if _is_stranger(error):
            raise ValueError(f"{name} could not be fetched: {_reason(error)}.") from error
        if isinstance(error, HfHubHTTPError):
            raise ValueError(_refusal(repository, error)) from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            raise ValueError(
                f"{name} could not be stored in {constants.HF_HUB_CACHE}: {error.strerror}; free some space, or set "
                "HF_HUB_CACHE to a folder on another disk, and start again: what is complete is kept."
            ) from error
        raise ValueError(
            f"{name} could not be fetched completely: {_first_line(error)}; start again: what is complete is kept."
        ) from error


def _clear_leftovers(repository: str) -> None:
    """Deletes half files of programs that were killed, where each download has its own and none takes them up."""
    blobs = Path(constants.HF_HUB_CACHE) / f"models--{repository.replace('/', '--')}" / "blobs"
    for half in blobs.glob("*.????????.incomplete"):
        with contextlib.suppress(FileNotFoundError):  # its download has just ended
            if time.time() - half.stat().st_mtime > ABANDONED:
                half.unlink()


def _fetched_before(repository: str, name: str, prefix: str, cause: Exception) -> Path:
    """The checkpoint's folder as an earlier start has fetched it, for want of a connection."""
    patterns = [prefix + pattern for pattern in (*TEXT, *TENSORS)]
    sentence = f"{name} is no folder here and could not be fetched from the Hub: {_reason(cause)}."
    try:
        snapshot = Path(snapshot_download(repository, allow_patterns=patterns, local_files_only=True))
    except LocalEntryNotFoundError as error:
        raise ValueError(sentence) from error
    folder = snapshot / prefix
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if "config.json" not in names:
        raise ValueError(sentence)
    _check_shards(name, folder, names, sentence)
    _check_content(name, snapshot, [prefix + file for file in _matching(names, "", (*TEXT, *TENSORS))])
    return folder


def _matching(files: Iterable[str], prefix: str, patterns: Iterable[str]) -> list[str]:
    """Those directly under `prefix` whose names match."""
    inside = [file for file in files if file.startswith(prefix) and "/" not in file[len(prefix) :]]
    return sorted(file for file in inside if any(fnmatch(file[len(prefix) :], pattern) for pattern in patterns))


def _check_listing(name: str, prefix: str, files: Iterable[str], text: list[str], tensors: list[str]) -> None:
    if prefix + "config.json" not in text:
        raise ValueError(f"{name} is no checkpoint: it has no config.json.")
    pickles = _matching(files, prefix, PICKLES)
    if not tensors and pickles:
        raise ValueError(
            f"{name} has its weights in {pickles[0].removeprefix(prefix)}, a pickle, which may run any code when "
            "opened; only safetensors are fetched and loaded."
        )
    if not tensors:
        raise ValueError(f"{name} is no checkpoint: it has no safetensors.")


def _check_shards(name: str, folder: Path, tensors: Iterable[str], reason: str = "") -> None:
    """Raises ValueError where the index names a shard that is not among `tensors`."""
    missing = sorted({*shards(folder, name)} - {*tensors}) if (folder / INDEX).exists() else []
    if missing:
        raise ValueError(reason or f"{name} is incomplete on the Hub: {INDEX} names {missing[0]}, which is not there.")


def shards(folder: Path, name: str) -> dict[str, list[str]]:
    """Shard → tensors in it, from the index of checkpoint `name`. Raises ValueError for one that cannot be read."""
    tensors: dict[str, list[str]] = {}
    try:
        for tensor, file in json.loads((folder / INDEX).read_text())["weight_map"].items():
            tensors.setdefault(str(file), []).append(tensor)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{INDEX} of {name} cannot be read: {_first_line(error)}.") from error
    for file in tensors:  # beside the index, and nothing that lies elsewhere
        allowed = "/" not in file and any(fnmatch(file, pattern) for pattern in TENSORS)
        check(allowed, f"{INDEX} of {name} names {short(file)}, which is no file of tensors in its folder.")
    return tensors


def _check_disk(name: str, need: int) -> None:
    cache = Path(constants.HF_HUB_CACHE).absolute()
    disk = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(disk).free
    if need > free:
        raise ValueError(
            f"{name} needs {need / 1e9:.1f} GB on the disk, but {free / 1e9:.1f} GB are free in {cache}; free some "
            "space, or set HF_HUB_CACHE to a folder on another disk."
        )


def _check_content(name: str, snapshot: Path, files: list[str]) -> None:
    """Raises ValueError for a file whose bytes are not those that the Hub names by their sum; it is deleted."""
    record = snapshot.parent.parent / CHECKED
    checked = set(json.loads(record.read_text())) if record.exists() else set()
    for file in files:
        stored = (snapshot / file).resolve()
        # without symbolic links (Windows) files lie in the cache without their sum, and only their size was compared
        if stored.name in checked or not _SUM.fullmatch(stored.name):
            continue
        if _sum(stored, len(stored.name)) != stored.name:
            (snapshot / file).unlink()
            stored.unlink(missing_ok=True)
            raise ValueError(
                f"{file} of {name} arrived corrupt: its content is not what the Hub's checksum says; it was deleted, "
                "start again to fetch it once more."
            )
        checked.add(stored.name)
        try:
            write_file(record, json.dumps(sorted(checked)).encode())
        except OSError as error:
            raise ValueError(str(error)) from error


def _sum(path: Path, digits: int) -> str:
    """What the Hub names a file by: SHA-256 (64 digits) of large ones, git's SHA-1 (40) of small ones."""
    if digits == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def _refusal(repository: str, error: HfHubHTTPError) -> str:
    """The sentence about a request that the Hub refused, and what helps."""
    status, page = error.response.status_code, f"{constants.ENDPOINT}/{repository}"
    if isinstance(error, GatedRepoError):
        return f"{repository} is gated: accept its terms at {page} and log in with `hf auth login`, then start again."
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"There is no {repository} on the Hub, or it is private ({status}): check how it is written, or log in "
            "with `hf auth login`."
        )
    if status in (401, 403):
        return f"The Hub refuses access to {repository} ({status}): log in with `hf auth login`, then start again."
    return f"{repository} could not be fetched from the Hub: {_first_line(error)}."


def _is_stranger(error: BaseException) -> bool:
    """Whether something else answers in the Hub's place, such as the sign-in page of a network or a proxy."""
    if isinstance(error, HfHubHTTPError):
        status, headers = error.response.status_code, error.response.headers
        page = headers.get("content-type", "").startswith("text/html") and "x-error-code" not in headers
        return status in (407, 511) or (status < 500 and page)
    if isinstance(error, (FileMetadataError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError)):
        return True
    return error.__cause__ is not None and _is_stranger(error.__cause__)


def _reason(error: Exception) -> str:
    """Why there was no connection to the Hub."""
    if not _is_stranger(error):
        return _first_line(error)
    return (
        f"the Hub cannot be reached, for something else answers at {constants.ENDPOINT}, such as the sign-in page of "
        "a network or a proxy; sign in there with a browser, or set HF_ENDPOINT, then start again"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0].rstrip(".")
