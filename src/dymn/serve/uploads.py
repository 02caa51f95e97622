"""The body of a request, or the file of a form, as a file on disk, in memory that does not grow with its length."""

from __future__ import annotations

import asyncio
import io
import shutil
import tempfile
from collections.abc import Coroutine
from pathlib import PurePosixPath, PureWindowsPath
from time import monotonic
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from dymn.errors import visible
from dymn.serve.errors import Refusal

if TYPE_CHECKING:
    from starlette.types import Message

SLOW_SECONDS = 2.0
SLOW_SPEED = 16 * 2**10
"""Bytes per second below which a body, after `SLOW_SECONDS`, loses its place to the next request if all are taken."""
_MAX_NAME = 200


class Upload(io.BufferedRandom):
    """A temporary file that is deleted when it is closed, with the sender's name for it, which is never opened."""

    def __init__(self, title: str) -> None:
        super().__init__(tempfile.TemporaryFile(buffering=0))  # noqa: SIM115 (closed with this one)
        self._title = title

    @property
    def name(self) -> str:
        """The sender's name for it."""
        return self._title


def shown_name(name: str | None) -> str:
    """Return the last part of a sender's name for a file as printable text of bounded length."""
    last = PurePosixPath(PureWindowsPath(name or "").name).name
    return visible(last)[:_MAX_NAME] or "upload"


class Arrival:
    """A request on its way, with what of its body has arrived."""

    def __init__(self) -> None:
        self.received = 0
        self.given_up = False
        self._begun = monotonic()
        self._reading: asyncio.Future[Any] | None = None

    @property
    def is_slow(self) -> bool:
        """Whether its body keeps a place without need: it still arrives, and at less than `SLOW_SPEED`."""
        return self._reading is not None and monotonic() - self._begun > SLOW_SECONDS and self.speed < SLOW_SPEED

    @property
    def speed(self) -> float:
        """Bytes per second so far."""
        return self.received / max(1e-3, monotonic() - self._begun)

    def give_up(self) -> None:
        """Stop reading it, since others need its place."""
        self.given_up = True
        if self._reading is not None:
            self._reading.cancel()

    async def read(self, body: Coroutine[Any, Any, Upload], seconds: float) -> Upload:
        """Return the result of `body` within a time limit; raise a Refusal if it was given up for other requests."""
        self._reading = asyncio.ensure_future(body)
        try:
            return await asyncio.wait_for(self._reading, seconds)
        except asyncio.CancelledError:
            if self.given_up:
                raise Refusal(
                    408, "slow", "The body arrived too slowly while other requests were waiting. Try again later.", 5
                ) from None
            raise
        finally:
            self._reading = None


async def receive(request: Request, max_bytes: int, seconds: float, arrival: Arrival | None = None) -> Upload:
    """Return the recording of a request, open at its start; the caller closes it.

    Raises:
        Refusal: if it is longer than `max_bytes`, takes longer than `seconds` to arrive, is empty, or is a form that
            contains something other than one file.
    """
    arrival = arrival or Arrival()
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _too_large(max_bytes)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    read = _form if kind == "multipart/form-data" else _raw
    try:
        upload = await arrival.read(read(_Limited(request, max_bytes, arrival)), seconds)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise Refusal(
            408, "slow", f"The body did not arrive within {seconds:g} s. Send a shorter or compressed recording."
        ) from error
    except ClientDisconnect as error:
        raise Refusal(499, "gone", "The client disconnected.") from error
    except HTTPException as error:
        raise Refusal(
            400,
            "form",
            f"The form cannot be read: {error.detail} Send one file in the field `file`, and settings in the query.",
        ) from error
    if upload.seek(0, io.SEEK_END) == 0:
        upload.close()
        raise Refusal(
            400, "empty", "The body is empty. Send a recording as the body, or as the field `file` of a form."
        )
    upload.seek(0)
    return upload


def _too_large(max_bytes: int) -> Refusal:
    remedy = "Cut the recording, or compress it, as FLAC or Opus."
    return Refusal(413, "too_large", f"The body is longer than {max_bytes / 2**20:g} MiB. {remedy}")


class _Limited(Request):
    """A request that is read up to a maximum length, whatever its header states."""

    def __init__(self, request: Request, max_bytes: int, arrival: Arrival) -> None:
        async def receive() -> Message:
            message = await request.receive()
            arrival.received += len(message.get("body", b""))
            if arrival.received > max_bytes:
                raise _too_large(max_bytes)
            return message

        super().__init__(request.scope, receive)


async def _raw(request: Request) -> Upload:
    upload = Upload("upload" if request.client is None else f"upload from {request.client.host}")
    try:
        async for chunk in request.stream():
            upload.write(chunk)
    except BaseException:
        upload.close()
        raise
    return upload


async def _form(request: Request) -> Upload:
    async with request.form(max_files=1, max_fields=4) as form:
        file: Any = form.get("file")
        if not isinstance(file, UploadFile):
            raise Refusal(400, "form", "The form has no file in its field `file`. Put the recording there.")
        for name, _ in form.multi_items():
            if name != "file":
                remedy = "Send one file in the field `file`, and settings as parameters of the query: ?top_k=3."
                raise Refusal(400, "form", f"The field {name[:100]!r} of the form is not allowed. {remedy}")
        upload = Upload(shown_name(file.filename))
        try:
            await run_in_threadpool(shutil.copyfileobj, file.file, upload)
        except BaseException:
            upload.close()
            raise
    return upload
