"""The upload route in place of Gradio's own, which would make a thousand files of one request, and leaves some behind.

Its parser, its names and its folders are used. Here is added: how many files one request has, how many bytes all of
them, whose they are and whether there is room, while they arrive; and what fails leaves nothing.
"""

import os
import secrets
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import anyio.to_thread
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app import visitor
from app.gradio_private import (
    GradioMultiPartParser,
    GradioUploadFile,
    strip_invalid_filename_characters,
    unfinished_files,
    uploaded,
)
from app.limits import MAX_BODY, MAX_UPLOADS, Limits
from app.store import Store, store


class Full(MultiPartException):
    """An upload for which there is no room; what has arrived is deleted."""


class Uploads:
    """ASGI middleware around Gradio's app: answers POST …/upload, passes everything else on."""

    def __init__(self, app: ASGIApp, *, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The answer is a list of paths, or a sentence with 400, 413 or 507."""
        if scope["type"] != "http" or scope["method"] != "POST" or not scope["path"].rstrip("/").endswith("/upload"):
            await self.app(scope, receive, send)
            return
        request, owner, status = Request(scope, receive), visitor.of(scope), 400
        try:
            paths = await self._taken(request, owner, store())
        except ClientDisconnect:
            return
        except Full as full:
            status, sentence = 507, f"The file cannot be taken: {full.message}"
        except MultiPartException as problem:
            sentence = problem.message
            if sentence.startswith("File size"):  # Gradio's words
                status, sentence = 413, f"A file's size is above {self.limits.file_bytes:,} bytes; send a smaller one."
        except OSError as failure:
            status, sentence = 507, f"The file cannot be taken: {failure.strerror or failure}."
        else:
            uploaded(scope["app"], paths)
            await JSONResponse(paths)(scope, receive, send)
            return
        await JSONResponse({"detail": sentence, "error": sentence}, status)(scope, receive, send)

    async def _taken(self, request: Request, owner: str, files: Store) -> list[str]:
        """Where the files of a request lie. Raises MultiPartException, ClientDisconnect, OSError."""
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise MultiPartException("Files are sent as multipart/form-data; this request is of another kind.")
        await self._room(files, owner, 0)
        with files.arriving(owner) as more:
            parser = _Parser(
                request.headers,
                self._counted(request, owner, files, more),
                max_files=MAX_UPLOADS,
                max_fields=0,
                upload_dir=files.folder,
                max_file_size=self.limits.file_bytes,
            )
            try:
                form = await parser.parse()
                return await anyio.to_thread.run_sync(
                    lambda: [_placed(file, owner, files) for _, file in form.multi_items()]
                )
            finally:
                await anyio.to_thread.run_sync(parser.clean)

    async def _counted(
        self, request: Request, owner: str, files: Store, more: Callable[[int], None]
    ) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises MultiPartException where it is too long or there is no room for it."""
        count, most = 0, MAX_UPLOADS * self.limits.file_bytes + MAX_BODY
        async for chunk in request.stream():
            count += len(chunk)
            if count > most:
                raise MultiPartException(f"The request is longer than {most:,} bytes.")
            await self._room(files, owner, len(chunk))
            more(len(chunk))
            yield chunk

    async def _room(self, files: Store, owner: str, size: int) -> None:
        if not files.fits(owner, self.limits, size):
            try:
                await anyio.to_thread.run_sync(files.make_room, owner, self.limits, size)
            except OSError as full:
                raise Full(str(full)) from full


class _Parser(GradioMultiPartParser):
    """Gradio's, without the files that it leaves where something else goes wrong than the parsing."""

    def clean(self) -> None:
        """Closes all files, and deletes those that were not given a name."""
        for file in unfinished_files(self):
            file.close()
            Path(file.name).unlink(missing_ok=True)


def _placed(file: object, owner: str, files: Store) -> str:
    """Moves an uploaded file to where it stays: a folder named by what it holds. Raises MultiPartException."""
    assert isinstance(file, GradioUploadFile)
    name = strip_invalid_filename_characters(Path(file.filename or "").name) or f"tmp{secrets.token_hex(5)}"
    if name in (".", ".."):
        raise MultiPartException("The file's name is none that a file can have; give it another.")
    path = files.folder / file.sha.hexdigest() / name
    path.parent.mkdir(exist_ok=True)
    file.file.close()
    os.rename(file.file.name, path)
    files.add(path, owner)
    return str(path)
