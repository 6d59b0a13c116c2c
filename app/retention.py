"""How long a visitor's files and freed memory stay: a folder of our own, swept while the page is served.

Gradio would put them into a folder that it shares with every Gradio app of this machine, and would delete only those
that it handed out itself.
"""

import ctypes
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path

from gradio.utils import get_upload_folder

SWEEP_SECONDS = 60.0
"""Between two sweeps at most: files stay that much longer than is said."""

log = logging.getLogger("inscape")


def stored_bytes(folder: str | os.PathLike[str]) -> int:
    """Bytes of all files below `folder`; those deleted meanwhile count nothing."""
    return sum(size for _, size, _ in _files(Path(folder)))


def check_room(most: int) -> None:
    """Raises OSError with a sentence where uploads and traces take up `most` bytes."""
    if stored_bytes(get_upload_folder()) >= most:
        raise OSError("this server holds as many files as it may; try again in a few minutes.")


def sweep(folder: str | os.PathLike[str], seconds: float, kept: Collection[str] = ()) -> int:
    """Deletes the files below `folder` that are older than `seconds`, but none of `kept`, and what is then empty.

    How many files went. What cannot be deleted is logged and tried again the next time.
    """
    folder, before, gone = Path(folder), time.time() - seconds, 0
    for path, _, changed in list(_files(folder)):
        if changed >= before or str(path) in kept:
            continue
        try:
            path.unlink(missing_ok=True)
        except OSError as problem:
            log.warning("%s could not be deleted: %s", path, problem)
        else:
            gone += 1
    for path, folders, files in os.walk(folder, topdown=False):
        # a folder is made a moment before its file, so only those that have stood empty for long go
        if path != str(folder) and not folders and not files and _changed(path) < before:
            remove_empty(Path(path))
    return gone


def sweeper(folder: str, seconds: float, kept: Collection[str], serving: Callable[[], bool]) -> threading.Thread:
    """Sweeps now and every minute, oftener where files stay shorter than that, for as long as `serving()`.

    What an earlier server left behind goes too.
    """

    def run() -> None:
        while serving():
            sweep(folder, seconds, kept)
            give_back()
            time.sleep(min(SWEEP_SECONDS, seconds / 4))

    thread = threading.Thread(target=run, daemon=True, name="sweeper")
    thread.start()
    return thread


def give_back() -> None:
    """Gives freed memory back to the system where the C library is glibc, which keeps what its threads have freed."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def delete(path: Path) -> None:
    """Deletes a trace and the folder that was made for it. Raises OSError."""
    path.unlink(missing_ok=True)
    remove_empty(path.parent)


def remove_empty(folder: Path) -> None:
    """Removes a folder if nothing is in it."""
    try:
        folder.rmdir()
    except OSError:  # something has been put there, or another thread was faster: both are well
        pass


def _files(folder: Path) -> list[tuple[Path, int, float]]:
    """Path, bytes and time of the last change of every file below `folder`."""
    found = []
    for path, _, names in os.walk(folder):
        for name in names:
            try:
                stat = os.lstat(os.path.join(path, name))
            except FileNotFoundError:
                continue
            found.append((Path(path, name), stat.st_size, stat.st_mtime))
    return found


def _changed(folder: str) -> float:
    try:
        return os.lstat(folder).st_mtime
    except FileNotFoundError:
        return time.time()
