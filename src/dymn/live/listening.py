"""From chunks of audio to messages and their receivers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from dymn.audio.microphone import Chunk
from dymn.inference.sounds import Sound, Sounds
from dymn.live.clips import ClipRecorder
from dymn.live.messages import Message, Messages

Receiver = Callable[[Message], None]


def listen(
    chunks: Iterable[Chunk],
    sounds: Sounds,
    messages: Messages,
    receivers: Sequence[Receiver],
    clips: ClipRecorder | None,
) -> None:
    """Process all chunks, and pass each message to all receivers.

    If this is interrupted, sounds that have started still end, and clips are completed.

    Args:
        chunks: the audio, and notices about its source.
        sounds: detects the sounds.
        messages: makes the messages.
        receivers: called with each message, in order.
        clips: saves the sounds; None saves nothing.

    Raises:
        AudioError: raised by `chunks`. KeyboardInterrupt and errors of receivers are also raised.
    """

    def send(message: Message) -> None:
        for receive in receivers:
            receive(message)

    def report(found: Iterable[Sound]) -> None:
        for sound in found:
            message = messages.sound(sound)
            if clips is not None:
                (clips.start if sound.kind == "start" else clips.end)(message)
            send(message)

    try:
        for chunk in chunks:
            if chunk.notice is not None:
                if chunk.notice.kind == "lost":
                    report(sounds.lose())
                    for message in clips.complete() if clips is not None else ():
                        send(message)
                send(messages.notice(chunk.notice, sounds.seconds))
                continue
            if clips is not None:
                for message in clips.feed(chunk.samples, chunk.dropped):
                    send(message)
            report(sounds.feed(chunk.samples, chunk.dropped))
        report(sounds.finish())
    except BaseException:
        report(sounds.lose())
        raise
    finally:
        if clips is not None:
            for message in clips.close():
                send(message)
