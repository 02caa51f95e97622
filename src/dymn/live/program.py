"""Messages that start a program."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable

from dymn.errors import ConfigError
from dymn.live.delivery import Delivery, DeliveryError
from dymn.live.lines import json_line
from dymn.live.messages import Message

TIMEOUT = 60.0
_FIELD = re.compile(r"\{(\w+)\}")
_AT = {
    "event": ("start", "end", "saved", "lost", "back", "gap"),
    "label": (),
    "score": (),
    "start": (),
    "time": (),
    "source": (),
    "path": ("saved",),
    "end": ("end",),
    "duration": ("end",),
    "end_time": ("end",),
}
"""The fields that a command may contain, and the messages that have them."""


class ProgramRunner(Delivery):
    """Runs one instance of a program at a time, without a shell.

    The command is split into words before fields are filled in, so a label with spaces or quotes is a single argument.
    The fields determine when the program runs: at the start of a sound; with {end}, {duration} or {end_time}, at its
    end; with {path}, when its clip is saved; with {event}, at each message. The program receives the message as JSON on
    standard input, and its output goes to standard error.
    """

    def __init__(self, command: str, note: Callable[[str], None], *, timeout: float = TIMEOUT) -> None:
        """Prepare to run a command such as 'notify-send "{label}"'.

        Raises:
            ConfigError: if it is empty, a quote is open, or a field is unknown.
        """
        try:
            self._words = shlex.split(command)
        except ValueError as error:
            raise ConfigError(f"--run {command!r} cannot be split into words ({error}). Check its quotes.") from error
        if not self._words:
            raise ConfigError("--run is empty. Give a program, such as --run 'notify-send {label}'.")
        fields = {field for word in self._words for field in _FIELD.findall(word)}
        if unknown := sorted(fields - _AT.keys()):
            allowed = ", ".join(f"{{{field}}}" for field in _AT)
            raise ConfigError(f"--run has an unknown field {{{unknown[0]}}}. Allowed: {allowed}.")
        self._events = next((events for field, events in _AT.items() if field in fields and events), ("start",))
        self._timeout = timeout
        self.name = f"command {self._words[0]}"
        super().__init__(note)

    def wants(self, message: Message) -> bool:
        """Whether a message has all fields of the command."""
        return message["event"] in self._events

    def words(self, message: Message) -> list[str]:
        """Return the words of the command for a message; fields that it does not have are empty.

        Raises:
            DeliveryError: if a field would turn an argument into an option, or contains a NUL character.
        """
        words = [_FIELD.sub(lambda found: str(message.get(found[1], "")), word) for word in self._words]
        for word, template in zip(words, self._words, strict=True):
            if (word.startswith("-") and not template.startswith("-")) or "\0" in word:
                raise DeliveryError(f"{word!r} would not be a plain argument")
        return words

    def deliver(self, message: Message) -> None:
        """Run the command and wait for it; one that takes too long is killed, and counts as failed."""
        try:
            subprocess.run(
                self.words(message), input=json_line(message).encode(errors="backslashreplace"), stdout=2, check=True,
                timeout=self._timeout,
            )  # fmt: skip
        except OSError as error:
            raise DeliveryError(error.strerror or str(error)) from error
        except subprocess.TimeoutExpired as error:
            raise DeliveryError(f"it took longer than {self._timeout:g} s and was killed") from error
        except subprocess.CalledProcessError as error:
            raise DeliveryError(f"it ended with exit code {error.returncode}") from error
