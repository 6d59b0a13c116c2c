"""The folder of our own in which visitors' files lie: marked, so that nothing else is ever swept away."""

import os
import stat
from pathlib import Path

MARK = ".inscape"
"""The file that says whose folder it is. No file of a visitor can have its path."""
_WORDS = "Inscape keeps its visitors' files here, and deletes them when they are old.\n"


def make(folder: str | os.PathLike[str]) -> None:
    """Makes the folder with its mark, for nobody else to read, unless something is there already. Raises OSError."""
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        return
    (folder / MARK).write_text(_WORDS)


def claim(folder: str | os.PathLike[str]) -> None:
    """Makes sure that all files of a folder may be deleted, and makes it where it is missing.

    Raises OSError with a sentence for a folder that is a link or another user's, and for one that holds files and no
    mark, for those are somebody's.
    """
    folder = Path(folder)
    make(folder)
    status, remedy = folder.lstat(), "name another place with GRADIO_TEMP_DIR."
    if not stat.S_ISDIR(status.st_mode):
        raise OSError(f"{folder} is a link or a file, and visitors' files need a folder of their own: {remedy}")
    if hasattr(os, "getuid") and status.st_uid != os.getuid():
        raise OSError(f"{folder} belongs to another user, who could read and change visitors' files: {remedy}")
    mark = folder / MARK
    if mark.is_symlink() or not mark.is_file():
        with os.scandir(folder) as entries:
            if any(True for _ in entries):
                raise OSError(f"{folder} holds files that are not Inscape's: move them away, or {remedy}")
        mark.write_text(_WORDS)
    folder.chmod(0o700)
