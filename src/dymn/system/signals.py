"""Ctrl-C and SIGTERM, from the first moment of a command to its last.

While the command works they raise an exception, so that it cleans up; while it ends they end it at once; during the
shutdown of the interpreter, when all work is done, they are ignored.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import weakref
from contextlib import suppress
from types import FrameType
from typing import NoReturn

AGAIN_SECONDS = 1.0
_received: list[int] = []


class Ended(KeyboardInterrupt):
    """Ctrl-C or SIGTERM has arrived.

    A subclass, because CPython kills the program by SIGINT at its end once a plain `KeyboardInterrupt` has passed
    through an `exec` of text (each definition of a dataclass is one), even if it was caught later.
    """

    def __init__(self, number: int = signal.SIGINT) -> None:
        super().__init__()
        self.number = number
        self.exit_code = 128 + number
        self.words = "Interrupted." if number == signal.SIGINT else "Terminated."


def watch() -> None:
    """Make the signals raise `Ended` in the main thread from now on, unless the parent process had them ignored."""
    process = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != process:
            os._exit(0)  # in a forked reader of data, whose failure would be reported as another error
        _received.append(number)
        _set_handler(_leave, signal.SIGINT)
        _set_handler(signal.SIG_IGN, signal.SIGTERM)  # a second one would interrupt the cleanup
        if hasattr(signal, "SIGCHLD"):
            # PyTorch raises an error when readers end, which the signal may have reached
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        raise _kept(Ended(number))

    _set_handler(end)
    atexit.register(_set_handler, signal.SIG_IGN)  # registered first, called last


def finish() -> None:
    """Let the signals end the process at once: nothing is left to clean up."""
    _set_handler(_leave)
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_REAL, 0)


def leave(code: str | int | None) -> NoReturn:
    """End the process with an exit code, as `sys.exit` does.

    At its end, Python stops daemon threads, such as those that decode, wherever they are. A thread within a C++ library
    such as PyTorch then aborts the process (before Python 3.14), and so does one that holds the lock of a stream. If
    such threads still run, this function does the rest of Python's cleanup and skips their end.
    """
    own = threading.current_thread()
    if not isinstance(code, str) and any(thread.daemon for thread in threading.enumerate() if thread is not own):
        with suppress(Exception):
            atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(Exception):
                stream.flush()
        os._exit(code or 0)
    sys.exit(code)


def ended(error: BaseException) -> Ended | None:
    """Return the signal that caused an error: any error after a signal, since libraries convert or replace `Ended`."""
    if isinstance(error, KeyboardInterrupt):
        return error if isinstance(error, Ended) else Ended()
    if isinstance(error, SystemExit) and not error.code:
        return None
    return Ended(_received[0]) if _received else None


def _kept(error: Ended) -> Ended:
    """Return the error, which is raised again a second later if a library has dropped it."""
    found, number = weakref.ref(error), error.number

    def look(*_: object) -> None:
        if found() is None:
            raise _kept(Ended(number))

    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, AGAIN_SECONDS, AGAIN_SECONDS)
    return error


def _leave(number: int, frame: FrameType | None) -> None:
    os._exit(128 + number)


def _set_handler(handler: signal._HANDLER, *numbers: signal.Signals) -> None:
    for number in numbers or (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)
