"""Atomic writing of files and folders: written beside the target, then renamed over it."""

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError


def write_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Replaces the file at `path`. Raises OSError with a plain sentence; what was there before is then untouched."""
    path = Path(path)
    draft = _beside(path)
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except OSError as error:
        raise _unsaved(path, error) from error
    finally:
        draft.unlink(missing_ok=True)


def write_folder(path: str | os.PathLike[str], fill: Callable[[Path], None]) -> None:
    """Replaces the folder at `path` by what `fill(draft)` writes. Raises OSError like `write_file`."""
    path = Path(path).absolute()
    draft, former = _beside(path), _beside(path)
    try:
        draft.mkdir(parents=True)
        fill(draft)
        if path.exists():
            os.rename(path, former)
        try:
            os.rename(draft, path)
        except OSError:
            if former.exists():
                os.rename(former, path)
            raise
    except (OSError, SafetensorError) as error:  # safetensors reports a full disk as its own error
        raise _unsaved(path, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
        if path.exists():
            shutil.rmtree(former, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A fresh name in the same folder, so that renaming stays within one file system."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")


def _unsaved(path: Path, error: Exception) -> OSError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return OSError(
        f"{path} could not be saved: {reason}. Free some space or choose another place; nothing was overwritten."
    )
