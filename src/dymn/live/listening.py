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
    """Hear chunks to their end, and hand each message to all receivers.

    Also when it is interrupted, every sound that has begun ends, and clips are completed.

    Args:
        chunks: the sound, and what happens to its source.
        sounds: decides what is heard.
        messages: makes the messages.
        receivers: called with each message, in order.
        clips: saves the sounds, if they are to be saved.

    Raises:
        AudioError: whatever `chunks` raises; KeyboardInterrupt and errors of receivers pass, too.
    """

    def tell(message: Message) -> None:
        for receive in receivers:
            receive(message)

    def report(found: Iterable[Sound]) -> None:
        for sound in found:
            message = messages.sound(sound)
            if clips is not None:
                (clips.start if sound.kind == "start" else clips.end)(message)
            tell(message)

    try:
        for chunk in chunks:
            if chunk.notice is not None:
                if chunk.notice.kind == "lost":
                    report(sounds.lose())
                tell(messages.notice(chunk.notice, sounds.seconds))
                continue
            if clips is not None:
                for message in clips.hear(chunk.samples, chunk.dropped):
                    tell(message)
            report(sounds.feed(chunk.samples, chunk.dropped))
        report(sounds.finish())
    except BaseException:
        report(sounds.lose())
        raise
    finally:
        if clips is not None:
            for message in clips.close():
                tell(message)
