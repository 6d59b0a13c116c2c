"""Where a data set's images lie: as files, or inside zip archives that stay as they are."""

import os
import zipfile
from pathlib import Path, PurePosixPath

from PIL import Image

from latent_core.images import ImageProblem, load_image

ZIP = "images.zip"


class ImageStore:
    """Images by their relative paths: files below `root`, or members of their subset's images.zip."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._zips: dict[Path, tuple[int, zipfile.ZipFile, frozenset[str]]] = {}

    def __getstate__(self) -> dict[str, object]:
        return {"root": self.root, "_zips": {}}  # an open file belongs to one process

    def find(self, path: str) -> tuple[Path, str | None]:
        """File and, if that is a zip, member. Raises ImageProblem where there is none or the path leads outside."""
        parts = PurePosixPath(path).parts
        if not parts or PurePosixPath(path).is_absolute() or ".." in parts or "\\" in path or "\0" in path:
            raise ImageProblem(f"the image path {path!r} does not stay in the data folder.")
        file = self.root.joinpath(*parts)
        if file.is_file() and file.resolve().is_relative_to(self.root.resolve()):
            return file, None
        for depth in range(1, len(parts)):
            archive = self.root.joinpath(*parts[:depth], ZIP)
            if archive.is_file():
                members = self._open(archive)[1]
                for start in (depth, 0):
                    member = "/".join(parts[start:])
                    if member in members:
                        return archive, member
        raise ImageProblem(f"the image {path} is missing, as a file and in every {ZIP} on its way.")

    def load(self, path: str) -> Image.Image:
        """The decoded image. Raises ImageProblem."""
        file, member = self.find(path)
        if member is None:
            return load_image(file)
        try:
            return load_image(self._open(file)[0].read(member))
        except zipfile.BadZipFile as error:
            raise ImageProblem(f"the image {path} is damaged in {file.name}: {error}.") from error

    def _open(self, path: Path) -> tuple[zipfile.ZipFile, frozenset[str]]:
        known = self._zips.get(path)
        if known is None or known[0] != os.getpid():
            try:
                archive = zipfile.ZipFile(path)
            except zipfile.BadZipFile as error:
                raise ImageProblem(f"{path.parent.name}/{path.name} is no zip file or damaged.") from error
            known = self._zips[path] = os.getpid(), archive, frozenset(archive.namelist())
        return known[1:]
