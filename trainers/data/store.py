"""A data set's images on the disk: files, or members of zip archives that stay as they are."""

import lzma
import os
import re
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from PIL import Image

from latent_core.model.images import ImageProblem, load_image
from trainers.data.text import clip

ZIP = "images.zip"
ZIP_PROBLEMS = (
    *(OSError, EOFError, RuntimeError, ValueError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
"""What zipfile raises for archives that are damaged or encrypted, and for methods of packing that it does not know."""


class ImageStore:
    """Images by their relative paths: files below `root`, or members of their subset's images.zip."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._zips: dict[Path, tuple[int, zipfile.ZipFile, dict[str, str]]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "_zips": {}}  # an open file belongs to one process

    def find(self, path: str) -> tuple[Path, str | None]:
        """File and, if that is a zip, member; folders end in / or, as Windows writes them, in a backslash.

        Raises ImageProblem where there is none, where its zip cannot give it, and where the path leads outside.
        """
        try:
            return self._find(path)
        except (ImageProblem, OSError) as error:
            reason = str(error)
            if isinstance(error, OSError):
                reason = f"the image path {clip(path, 80)!r} cannot be used: {error.strerror}."
            if path.startswith("data:") or len(path) > 255:
                reason += (
                    " Is it the image itself? Write it to a file and give its path; only format thyme holds images."
                )
            raise ImageProblem(reason) from error

    def load(self, path: str) -> Image.Image:
        """The decoded image. Raises ImageProblem."""
        file, member = self.find(path)
        if member is None:
            return load_image(file)
        try:
            data = self._open(file)[0].read(member)
        except ZIP_PROBLEMS as error:
            raise self._unreadable(path, file, error) from error
        return load_image(data)

    def _find(self, path: str) -> tuple[Path, str | None]:
        parts, shown = PurePosixPath(path.replace("\\", "/")).parts, clip(path, 80)
        absolute = parts and (parts[0].startswith("/") or re.fullmatch("[A-Za-z]:", parts[0]))
        if not parts or absolute or ".." in parts or "\0" in path:
            raise ImageProblem(f"the image path {shown!r} does not stay in the data folder.")
        file = self.root.joinpath(*parts)
        if file.is_file():
            if not file.resolve().is_relative_to(self.root.resolve()):
                raise ImageProblem(f"the image path {shown!r} is a link that does not stay in the data folder.")
            return file, None
        for depth in range(1, len(parts)):
            archive = self.root.joinpath(*parts[:depth], ZIP)
            if archive.is_file():
                opened, members = self._open(archive)
                for start in (depth, 0):
                    member = members.get("/".join(parts[start:]))
                    if member is not None:
                        try:
                            opened.open(member).close()  # what is encrypted or packed by other methods shows here
                        except ZIP_PROBLEMS as error:
                            raise self._unreadable(path, archive, error) from error
                        return archive, member
        raise ImageProblem(f"the image {shown} is missing, as a file and in every {ZIP} on its way.")

    def _open(self, path: Path) -> tuple[zipfile.ZipFile, dict[str, str]]:
        """The archive, and its members' names by the paths that they stand for."""
        entry = self._zips.get(path)
        if entry is None or entry[0] != os.getpid():
            try:
                archive = zipfile.ZipFile(path)
            except ZIP_PROBLEMS as error:
                raise ImageProblem(
                    f"{path.relative_to(self.root)} is no zip file that can be read: {error}."
                ) from error
            members = {name.replace("\\", "/"): name for name in archive.namelist()}
            entry = self._zips[path] = os.getpid(), archive, members
        return entry[1:]

    def _unreadable(self, path: str, archive: Path, error: Exception) -> ImageProblem:
        reason = str(error).rstrip(".") or type(error).__name__
        return ImageProblem(
            f"the image {clip(path, 80)} cannot be read from {archive.relative_to(self.root)}: {reason}."
        )
