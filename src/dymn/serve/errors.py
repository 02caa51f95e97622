"""Responses to requests that are rejected or fail: a status, a code for programs, and a message with the remedy."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any, TypeVar

from dymn.audio.decoder import MissingDecoderError
from dymn.errors import AudioError, ConfigError, DymnError, MissingExtraError, resource_error

T = TypeVar("T")


class Refusal(DymnError):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
        code: one word or two for programs, such as "queue_full".
        retry_after: after how many seconds it is worth trying again, if it is.
    """

    def __init__(self, status: int, code: str, message: str, retry_after: int | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.retry_after = status, code, retry_after

    @property
    def headers(self) -> dict[str, str]:
        """The headers that go with the refusal."""
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        return headers | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})

    def to_dict(self) -> dict[str, Any]:
        """Return the refusal as JSON types."""
        return {"error": {"code": self.code, "message": str(self)}}


_KINDS: tuple[tuple[type[DymnError], int, str], ...] = (
    (MissingDecoderError, 415, "format"),
    (AudioError, 422, "audio"),
    (ConfigError, 400, "setting"),
    (MissingExtraError, 501, "missing_extra"),
)


async def within(seconds: float, work: Awaitable[T], message: str) -> T:
    """Return the result of work, or raise a Refusal with a message if it takes longer than so many seconds."""
    try:
        return await asyncio.wait_for(work, seconds)
    except (asyncio.TimeoutError, TimeoutError) as error:
        raise Refusal(408, "slow", message) from error


def refusal(error: Exception) -> Refusal:
    """Return an error as a refusal; any unexpected error is an internal error without details."""
    if isinstance(error, Refusal):
        return error
    if resource_error(error) is not None:
        message = (
            "The server does not have enough memory for this request. Send a shorter recording, use a shorter window, "
            "or try again later."
        )
        return Refusal(503, "memory", message, 5)
    for kind, status, code in _KINDS:
        if isinstance(error, kind):
            return Refusal(status, code, str(error))
    return Refusal(500, "internal", "An error occurred in the server; see its log. Another recording may work.")
