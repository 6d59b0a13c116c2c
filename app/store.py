"""A table of all files of visitors: how many there are, how large, how old, whose. Nothing is looked for on the disk.

Files that nobody entered, those of an earlier server or of another one that shares the folder, are found by `correct`
and belong to the address "".
"""

import functools
import logging
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from app.folder import MARK
from app.gradio_private import get_upload_folder
from app.limits import Limits

UPLOAD_SECONDS = 600.0
"""A file that lies in the folder itself is on its way to a name, unless it has not grown for so long."""

log = logging.getLogger("inscape")


@dataclass(slots=True)
class Entry:
    """A file: its owner's address, its bytes, the time of its last change."""

    owner: str
    bytes: int
    changed: float


@dataclass(slots=True)
class Share:
    """The files of one address, oldest first, and the bytes that are on their way to it."""

    files: dict[str, Entry] = field(default_factory=dict)
    bytes: int = 0
    arriving: int = 0


class Store:
    """The files below one folder. Safe to use from several threads.

    Args:
        folder: is read once now, and again by `correct`.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).resolve()
        self.protected: Callable[[], Collection[str]] = frozenset
        """Paths of files that are never dropped or swept: those that open pages show."""
        self._shares: dict[str, Share] = {}
        self._files: dict[str, Entry] = {}
        self._bytes = 0
        self._lock = threading.RLock()
        self.correct()

    @property
    def bytes(self) -> int:
        """Of all files, and of those that are arriving."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, path: object) -> bool:
        return path in self._files

    def add(self, path: str | os.PathLike[str], owner: str) -> None:
        """A file was written, or written again, for which its first owner goes on to answer. Raises OSError.

        What lies outside of the folder is left alone.
        """
        path = Path(path).resolve()
        if self.folder not in path.parents:
            return
        status = path.lstat()
        with self._lock:
            former = self._files.get(str(path))
            self._enter(str(path), Entry(former.owner if former else owner, status.st_size, status.st_mtime))

    def delete(self, path: str | os.PathLike[str]) -> None:
        """Deletes a file, and its folder if that is empty then. Raises OSError."""
        path = Path(path)
        path.unlink(missing_ok=True)
        with self._lock:
            self._forget(str(path.resolve()))
        remove_empty(path.parent)

    def fits(self, owner: str, limits: Limits, size: int = 0) -> bool:
        """Whether one more file and `size` more bytes of an address fit in without anything being dropped."""
        with self._lock:
            over_share = self._above(self._shares.get(owner, Share()), limits, size, limits.share if owner else 1.0)
            return not over_share and not self._above(self, limits, size, 1.0)

    def make_room(self, owner: str, limits: Limits, size: int = 0) -> None:
        """Drops old files until one more and `size` more bytes of an address fit in.

        Where the address has its share: its own, oldest first, unless they are younger than `limits.settled_seconds`.
        Where the whole store is full: the oldest of the address that has most. Never what is `protected`.
        Raises OSError with a sentence where nothing can be dropped.
        """
        with self._lock:
            share, protected = self._shares.get(owner, Share()), None
            while owner and self._above(share, limits, size, limits.share):
                protected = protected or {*self.protected()}
                oldest = next((path for path in share.files if path not in protected), None)
                wait = share.files[oldest].changed + limits.settled_seconds - time.time() if oldest else 0.0
                if oldest is None or wait > 0:
                    raise OSError(_share_full(limits, wait if oldest else None))
                self._drop(oldest)
            while self._above(self, limits, size, 1.0):
                protected = protected or {*self.protected()}
                oldest = self._oldest_of_most(protected, limits)
                if oldest is None:
                    raise OSError(
                        "all files that this server has room for belong to pages that are open; try again when some "
                        "have been closed."
                    )
                self._drop(oldest)

    @contextmanager
    def arriving(self, owner: str) -> Iterator[Callable[[int], None]]:
        """Counts bytes of an address that are on their way to files, by the function that it gives."""
        count = 0

        def more(size: int) -> None:
            nonlocal count
            with self._lock:
                count += size
                self._bytes += size
                self._shares.setdefault(owner, Share()).arriving += size

        try:
            yield more
        finally:
            more(-count)
            with self._lock:
                self._tidy(owner)

    def sweep(self, limits: Limits) -> int:
        """Compares the table with the disk, deletes what is too old and what is above the limits; how many went.

        What is `protected` is marked as new, so that another server which shares the folder leaves it, too. What
        cannot be deleted is logged and tried again the next time.
        """
        self.correct()
        before, protected = time.time() - limits.keep_seconds, {*self.protected()}
        for path in protected:
            if path in self:
                _touch(path)
        with self._lock:
            old = [path for path, entry in self._files.items() if entry.changed < before and path not in protected]
        for path in old:
            with self._lock:
                self._drop(path)
        try:
            self.make_room("", limits)
        except OSError as problem:
            log.warning("Visitors' files are above their limit: %s", problem)
        for path, folders, files in os.walk(self.folder, topdown=False):
            # a folder is made a moment before its file, so only those that have stood empty for long go
            if path != str(self.folder) and not folders and not files and _changed(path) < before:
                remove_empty(Path(path))
        return len(old)

    def correct(self) -> None:
        """Enters what lies on the disk and is not in the table, and takes out what is gone. Links are not followed."""
        grown = time.time() - UPLOAD_SECONDS
        on_disk = [file for file in walked(self.folder) if Path(file[0]).parent != self.folder or file[2] < grown]
        on_disk.sort(key=lambda file: file[2])
        with self._lock:
            for path in self._files.keys() - {path for path, *_ in on_disk}:
                if not os.path.lexists(path):
                    self._forget(path)
            for path, size, changed in on_disk:
                if path not in self._files and os.path.lexists(path):
                    self._enter(path, Entry("", size, changed))

    def _above(self, part: "Share | Store", limits: Limits, size: int, share: float) -> bool:
        count = len(part) if isinstance(part, Store) else len(part.files)
        bytes = part.bytes if isinstance(part, Store) else part.bytes + part.arriving
        return bytes + size >= share * limits.disk_bytes or count + 1 > share * limits.disk_files

    def _oldest_of_most(self, protected: Collection[str], limits: Limits) -> str | None:
        """The oldest file, but none of `protected`, of the address with the largest part of all bytes or files."""

        def part(share: Share) -> float:
            return max(share.bytes / max(1, limits.disk_bytes), len(share.files) / max(1, limits.disk_files))

        for share in sorted(self._shares.values(), key=part, reverse=True):
            oldest = next((path for path in share.files if path not in protected), None)
            if oldest is not None:
                return oldest
        return None

    def _enter(self, path: str, entry: Entry) -> None:
        self._forget(path)  # and in again as the newest
        share = self._shares.setdefault(entry.owner, Share())
        share.files[path] = self._files[path] = entry
        share.bytes += entry.bytes
        self._bytes += entry.bytes

    def _forget(self, path: str) -> None:
        entry = self._files.pop(path, None)
        if entry is not None:
            share = self._shares[entry.owner]
            del share.files[path]
            share.bytes -= entry.bytes
            self._bytes -= entry.bytes
            self._tidy(entry.owner)

    def _tidy(self, owner: str) -> None:
        share = self._shares.get(owner)
        if share is not None and not share.files and not share.arriving:
            del self._shares[owner]

    def _drop(self, path: str) -> None:
        try:
            self.delete(path)
        except OSError as problem:
            log.warning("%s could not be deleted: %s", path, problem)
            self._forget(path)  # until the disk is looked at again


@functools.cache
def store() -> Store:
    """The one of this process's folder."""
    return Store(get_upload_folder())


def walked(folder: str | os.PathLike[str]) -> list[tuple[str, int, float]]:
    """Path, bytes and time of the last change of every file below `folder`, but for its mark."""
    entries, mark = [], os.path.join(folder, MARK)
    for path, _, names in os.walk(folder):
        for name in names:
            file = os.path.join(path, name)
            try:
                stat = os.lstat(file)
            except FileNotFoundError:
                continue
            if file != mark:
                entries.append((file, stat.st_size, stat.st_mtime))
    return entries


def stored_bytes(folder: str | os.PathLike[str]) -> int:
    """Bytes of all files below `folder` as they lie on the disk; those deleted meanwhile count nothing."""
    return sum(size for _, size, _ in walked(folder))


def remove_empty(folder: Path) -> None:
    """Removes a folder if nothing is in it."""
    try:
        folder.rmdir()
    except OSError:  # something has been put there, or another thread was faster: both are well
        pass


def _share_full(limits: Limits, wait: float | None) -> str:
    """`wait`: seconds until the oldest file makes room; None where none will while its page is open."""
    minutes = max(1, math.ceil((wait or 0) / 60))
    when = f"try again in {minutes} {'minute' if minutes == 1 else 'minutes'}, when older ones make room"
    return (
        f"files from your address fill its share of this server, {limits.share * limits.disk_bytes / 1e6:,.0f} MB or "
        f"{limits.share * limits.disk_files:,.0f} files; delete runs"
        + (f", or {when}." if wait is not None else " or close pages that you do not need.")
    )


def _touch(path: str) -> None:
    try:
        os.utime(path, follow_symlinks=False)
    except FileNotFoundError:
        pass


def _changed(folder: str) -> float:
    try:
        return os.lstat(folder).st_mtime
    except FileNotFoundError:
        return time.time()
