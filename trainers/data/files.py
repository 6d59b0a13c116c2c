"""Files of rows: JSON, one object a line or a list of them, and Parquet, which stays on the disk."""

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
from datasets.data_files import DataFilesDict, DataFilesList

from trainers.data.text import no_character

datasets.disable_progress_bars()  # they would tear those of a run

_BLANK = " \t\r\n\ufeff"
"""What may stand between the values of a file: byte order marks, too, where files were strung together."""
_PROBLEMS = (ValueError, RecursionError)
"""What json raises: its own error, numbers with too many digits, lists that are nested too deeply."""


class Unreadable(ValueError):
    """Stands in the place of a row that cannot be read, and says why."""


def read_rows(file: Path) -> Sequence[object]:
    """The rows of a JSON file, or of a Parquet file, which stay on the disk until they are asked for.

    A row that cannot be read, although the file can, is an Unreadable. Raises ValueError with the file's name.
    """
    return read_parquet(file) if file.suffix.lower() == ".parquet" else read_json(file)


class _Parquet(Sequence):
    """Rows of a data set, one by one."""

    def __init__(self, data: datasets.Dataset) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> object:
        try:
            return self.data[index]
        except UnicodeDecodeError as error:
            return Unreadable(f"a text holds the byte 0x{error.object[error.start]:02x}, which is no UTF-8.")


def read_parquet(file: Path) -> Sequence[object]:
    """The rows of a Parquet file as plain values, whatever its metadata says. Raises ValueError."""
    try:
        parquet, state = pyarrow.parquet.ParquetFile(file), file.stat()
        if not parquet.metadata.num_rows:
            return ()
        features = datasets.Features.from_arrow_schema(parquet.schema_arrow.remove_metadata())
        # given as a path, train[1].parquet would be a pattern, and a new file of the same age the old one
        exact = DataFilesList([str(file.absolute())], [(str(state.st_mtime_ns), str(state.st_size))])
        return _Parquet(
            datasets.Dataset.from_parquet(DataFilesDict(train=exact), split=datasets.Split.TRAIN, features=features)
        )
    except datasets.exceptions.DatasetGenerationError as error:
        raise ValueError(f"{file} is no Parquet file that can be read: {error.__cause__ or error}.") from error
    except FileNotFoundError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror or 'there is no such file'}.") from error
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise ValueError(f"{file} is no Parquet file that can be read: {error}.") from error


def read_json(file: Path) -> list[object]:
    """The objects of a JSON list, or those of a file with one object after the other, a line each as a rule.

    UTF-8, or UTF-16 and UTF-32 as JSON tells them apart, with or without a byte order mark. A broken line among
    others that are objects is an Unreadable. Raises ValueError with the file's name, and the line where one is broken.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}.") from error
    try:
        # a byte that is no UTF-8 concerns the row that it stands in
        text = data.decode(json.detect_encoding(data), "surrogateescape")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text in UTF-8, so it is no JSON.") from error
    text = text if "\n" in text else text.replace("\r", "\n")
    try:
        return [row for value in _values(text) for row in (value if isinstance(value, list) else [value])]
    except _PROBLEMS as error:
        lines = [] if text.lstrip(_BLANK).startswith("[") else list(_lines(text))
        # what is indented belongs to an object over several lines
        if any(line.startswith("{") and isinstance(row, dict) for line, row in lines):
            return [row for _, row in lines]
        if no_character(text):
            raise ValueError(f"{file} is no text in UTF-8, so it is no JSON.") from error
        raise ValueError(f"{file} is not valid JSON: {error}.") from error


def _values(text: str) -> Iterator[object]:
    """The values of a text, one after the other."""
    decoder, blank = json.JSONDecoder(), re.compile(f"[{_BLANK}]*")
    place = blank.match(text).end()
    while place < len(text):
        value, end = decoder.raw_decode(text, place)
        yield value
        place = blank.match(text, end).end()


def _lines(text: str) -> Iterator[tuple[str, object]]:
    """Every line that is not blank, and its value."""
    for number, line in enumerate(text.split("\n"), start=1):
        line = line.lstrip("\ufeff")
        if not line.strip(_BLANK):
            continue
        try:
            yield line, json.loads(line)
        except json.JSONDecodeError as error:
            yield line, Unreadable(f"line {number} is not valid JSON: {error.msg} at column {error.colno}.")
        except _PROBLEMS as error:
            yield line, Unreadable(f"line {number} is not valid JSON: {error}.")
