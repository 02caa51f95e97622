"""From the content of a recording to blocks of samples: the choice of a decoder, and checks for completeness.

The first bytes of the file determine the decoder:

- WAV, RF64, Wave64, AIFF, CAF, AU: uncompressed samples are read here (`pcm_files`); compressed ones by libsndfile,
  then FFmpeg.
- FLAC: libsndfile; FFmpeg if the length in the header is wrong, or where libsndfile fails.
- Ogg (Vorbis, Opus, FLAC, Speex): libsndfile, then FFmpeg; each link of a chained file by itself.
- MPEG audio, ADTS AAC, AC-3, AMR: FFmpeg; their frames are counted first (`mpeg`, `elementary`). Joined MPEG files, and
  joined MP4 files, are decoded one by one.
- everything else: libsndfile, then FFmpeg.

Everything is read in chunks. Lengths in headers are compared with the file and never used to reserve memory. A
recording that ends before its header says is an error, not a short recording: its tags would silently be those of a
part.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial as bind

from dymn.audio import elementary, flac, mpeg, ogg, pcm_files
from dymn.audio.content import Content
from dymn.audio.decoder import CHUNK_SAMPLES, Block, Decoder, MissingDecoderError, UnknownFormatError, check_format
from dymn.audio.ffmpeg import open_ffmpeg
from dymn.audio.libsndfile import open_libsndfile
from dymn.audio.notes import SLACK_SECONDS, Report, duration, report_lost, report_tail
from dymn.audio.sources import reading_errors
from dymn.errors import AudioError

_WHOLE_SHARE = 0.995
_FFMPEG_ONLY = (b"\x1aE\xdf\xa3", b"0&\xb2u", b"FLV", b"#!AMR", b"\0\0\1\xba", b"\x0bw", b"MAC ", b"wvpk", b"TTA1")
"""The first bytes of Matroska, ASF, FLV, AMR, MPEG, AC-3, Monkey's Audio, WavPack and True Audio."""
_CHUNKED = (b"RIFF", b"RIFX", b"RF64", b"BW64", b"riff", b"FORM", b"caff", b".snd", b"dns.")


def open_decoder(content: Content, report: Report, stack: ExitStack) -> Decoder:
    """Open the decoder of a recording.

    Raises:
        AudioError: if it cannot be opened or is not audio, or has no such track.
        MissingDecoderError: an AudioError, if FFmpeg is needed and PyAV is not installed.
    """
    with reading_errors(report.name):
        decoder = _opened(content, report, stack)
    report.check_track()
    return decoder


def _opened(content: Content, report: Report, stack: ExitStack) -> Decoder:
    base = mpeg.id3_length(content)
    base = base if base < content.size else 0  # a tag with a wrong length
    head = content.at(base, 12)
    plain = pcm_files.layout(content, base)
    if plain is not None and plain.coding is not None:
        if pcm_files.is_disguised(content, plain):
            report.note("its samples are an encoded stream (DTS or AC-3), which is decoded.")
            return _open_known(open_ffmpeg, content, report, stack)
        return _plain(content, plain, report)
    found = None if plain is not None or _is_something_else(head) else mpeg.frames(content, base)
    if found is not None:
        return _mpeg(content, base, found, report, stack)
    if base:
        content = stack.enter_context(content.part(base, content.size))
    if plain is not None:
        _check_share(plain, report)
    if head[:4] == b"fLaC":
        return _flac(content, report, stack)
    if head[:4] == b"OggS":
        return _ogg(content, report, stack)
    stream, boxes = elementary.frames(content), elementary.boxes(content)
    if stream is not None:
        return _elementary(content, stream, report, stack)
    if boxes is not None:
        return _mp4(content, boxes, report, stack)
    flv_starts = elementary.flv_starts(content)
    if flv_starts:
        return _files(content, flv_starts, report, stack)
    share = elementary.share_there(content)
    if share < _WHOLE_SHARE:
        report.damage(None, None, f"{share:.0%} of the bytes that its header states are present")
    return _either(content, report, stack)


def _elementary(content: Content, found: elementary.StreamFrames, report: Report, stack: ExitStack) -> Decoder:
    """Open a stream of frames, without the bytes behind them, which the decoder might misread."""
    report_lost(found.lost, (found.end - found.start - found.lost) / max(found.seconds, 0.01), report)
    if found.cut:
        report.damage(found.seconds, None, "its last frame is incomplete")
    report_tail(content, found.end, report)
    if found.end < content.size:
        content = stack.enter_context(content.part(found.start, found.end))
    return _open_known(open_ffmpeg, content, report, stack)


def _mp4(content: Content, boxes: elementary.Boxes, report: Report, stack: ExitStack) -> Decoder:
    if not boxes.has_index:
        raise AudioError(
            f"{report.name} is incomplete: it has no index (moov), because recording was interrupted or its end is "
            "missing. Get a complete copy, or repair it with a tool for the recorder."
        )
    return _files(content, boxes.starts, report, stack)


def _files(content: Content, starts: tuple[int, ...], report: Report, stack: ExitStack) -> Decoder:
    """Open files that follow each other in one; FFmpeg reads the first of them only."""
    if len(starts) == 1:
        return _open_known(open_ffmpeg, content, report, stack)
    report.note(f"it contains {len(starts)} concatenated files; all of them are read.")
    return _joined(content, [bind(_link, link) for link in ogg.links(starts, content.size)], report, stack)


def _is_something_else(head: bytes) -> bool:
    known = (*_CHUNKED, b"fLaC", b"OggS", b"\x47", b"\xff\xf1", b"\xff\xf9", *_FFMPEG_ONLY)
    return head.startswith(known) or head[4:8] == b"ftyp"


def _plain(content: Content, plain: pcm_files.PcmLayout, report: Report) -> Decoder:
    """Read uncompressed samples."""
    check_format(report.name, plain.rate, plain.channels)
    frames = plain.length // plain.frame
    if frames == 0:
        raise AudioError(f"{report.name} contains no samples. Record or copy it again.")
    _check_share(plain, report)
    for note in plain.notes:
        report.note(note)
    blocks = _plain_blocks(content, plain, frames)
    return Decoder(plain.rate, plain.channels, frames, plain.name, blocks, plain=plain, omni=plain.ambisonic)


def _plain_blocks(content: Content, plain: pcm_files.PcmLayout, frames: int) -> Iterator[Block]:
    for _, data in pcm_files.chunks(content, plain, 0, frames, CHUNK_SAMPLES):
        yield Block(pcm_files.decoded(data, plain.coding or "", plain.channels), plain.rate)


def _check_share(plain: pcm_files.PcmLayout, report: Report) -> None:
    """Compare the number of samples with that in the header."""
    promised = plain.promised or 0
    if promised <= plain.length:
        return
    seconds = plain.rate * plain.frame
    if plain.coding is None:
        if promised > 1.01 * plain.length:
            report.damage(
                None, None, f"{plain.length / promised:.0%} of the samples that its header states are present"
            )
        return
    there, missing = plain.length // plain.frame * plain.frame / seconds, (promised - plain.length) / seconds
    if missing > SLACK_SECONDS:
        report.damage(there, promised / seconds, "its end is missing")
    elif promised // plain.frame > plain.length // plain.frame:
        report.note(f"it ends {missing:.3f} s earlier than its header states.")


def _flac(content: Content, report: Report, stack: ExitStack) -> Decoder:
    info = flac.stream_info(content)
    there = None if info is None else flac.last_sample(content, info)
    if info is None or there is None or not 0 < info.total < there:
        decoder = _either(content, report, stack)
        if decoder.frames is None and there is not None:
            decoder.blocks = _counted(decoder.blocks, there / decoder.rate, report)
        return decoder
    check_format(report.name, info.rate, info.channels)
    report.note(
        f"its header states {duration(info.total / info.rate)}, but its frames amount to "
        f"{duration(there / info.rate)}; all are read."
    )
    decoder = _open_known(bind(open_ffmpeg, kind="flac", counted=True), content, report, stack)
    decoder.frames = there
    return decoder


def _counted(blocks: Iterator[Block], seconds: float, report: Report) -> Iterator[Block]:
    """Yield blocks, and compare their length with what was counted."""
    there = 0.0
    for block in blocks:
        there += len(block.samples) / block.rate
        yield block
    if seconds - there > SLACK_SECONDS:
        report.damage(there, seconds, "its end is missing")


def _ogg(content: Content, report: Report, stack: ExitStack) -> Decoder:
    found = ogg.pages(content)
    if found is None:
        return _either(content, report, stack)
    if found.cut:
        report.damage(None, None, "its last page is incomplete")
    elif not found.ended:
        report.note("its stream has no last page: the file may be truncated.")
    if found.skipped:
        report.note(f"{found.skipped} bytes between or after its pages are ignored.")
    if len(found.links) == 1:
        if found.lost and not found.cut:  # FFmpeg keeps the place of what follows the lost pages
            with contextlib.suppress(MissingDecoderError):
                return _open_known(open_ffmpeg, content, report, stack)
        return _either(content, report, stack)
    report.note(f"it contains {len(found.links)} concatenated streams; all of them are read.")
    return _joined(content, [bind(_link, link) for link in found.links], report, stack)


def _link(link: ogg.Link, content: Content, report: Report, stack: ExitStack) -> Decoder:
    return _either(stack.enter_context(content.part(link.start, link.end)), report, stack)


def _mpeg(content: Content, base: int, found: mpeg.MpegFrames, report: Report, stack: ExitStack) -> Decoder:
    total = sum(part.samples / part.rate for part in found.parts)
    used = sum(part.end - part.start for part in found.parts) - found.lost
    report_lost(found.lost, max(1.0, used / total), report)
    if found.cut:
        report.note("its last frame is incomplete: the file may be truncated.")
    report_tail(content, found.end, report)
    if len(found.parts) == 1:
        tail = content.at(found.parts[0].end, 129)
        clean = (
            not found.cut and found.parts[0].start == base and (not tail or (tail[:3] == b"TAG" and len(tail) == 128))
        )
        return _mpeg_part(found.parts[0], content, report, stack, whole=clean)
    report.note(f"it contains {len(found.parts)} concatenated MP3 files; all of them are read.")
    return _joined(content, [bind(_mpeg_part, part) for part in found.parts], report, stack)


def _mpeg_part(part: mpeg.Part, content: Content, report: Report, stack: ExitStack, whole: bool = False) -> Decoder:
    """Open one of the files that are joined in an MP3, or the only one; `whole` if it is all of the file."""
    length = part.length / part.rate
    if part.claimed is not None and not part.truthful:
        claimed = max(0.0, part.claimed * part.samples / part.frames - part.trimmed) / part.rate
        if claimed > length + SLACK_SECONDS:
            report.damage(length, claimed, "its end is missing")
        else:
            report.note(
                f"its header states {duration(claimed)}, but its frames amount to {duration(length)}; all are read."
            )
    start = part.start if part.truthful else part.first
    if not whole:
        content = stack.enter_context(content.part(start, part.end))
        start = 0
    try:
        # A wrong header is skipped, because FFmpeg would trim at the end that it states.
        decoder = _open_known(
            bind(open_ffmpeg, kind="mp3", skip=0 if part.truthful else start, counted=not part.changes),
            content,
            report,
            stack,
        )
    except MissingDecoderError:
        decoder = _open_known(bind(open_libsndfile, go_on=_nothing), content, report, stack)
        if decoder.frames is None or abs(decoder.frames - part.length) > SLACK_SECONDS * decoder.rate:
            raise
    decoder.format = "MP3 MPEG_LAYER_III"
    decoder.frames = None if part.changes else part.length
    return decoder


def _nothing(done: int) -> Iterator[Block]:
    raise UnknownFormatError


_Open = Callable[[Content, Report, ExitStack], Decoder]


def _joined(content: Content, parts: list[_Open], report: Report, stack: ExitStack) -> Decoder:
    """Open recordings that follow each other in one file; those after the first that fail are reported as damage."""
    inner = stack.enter_context(ExitStack())
    first = parts[0](content, report, inner)

    def blocks() -> Iterator[Block]:
        yield from _complete(first, report)
        inner.close()
        for number, part in enumerate(parts[1:], start=2):
            with ExitStack() as own:
                try:
                    decoder = part(content, report, own)
                except AudioError as error:
                    report.damage(None, None, f"its part {number} of {len(parts)} cannot be decoded", error)
                    continue
                if decoder.rate != first.rate:
                    report.note(
                        f"its part {number} has a sample rate of {decoder.rate} Hz, and the first {first.rate} Hz."
                    )
                yield from _complete(decoder, report)

    return Decoder(first.rate, first.channels, None, first.format, blocks())


def _complete(decoder: Decoder, report: Report) -> Iterator[Block]:
    return decoder.blocks if decoder.frames is None else _counted(decoder.blocks, decoder.frames / decoder.rate, report)


def _either(content: Content, report: Report, stack: ExitStack) -> Decoder:
    """Use libsndfile, and FFmpeg for formats that libsndfile does not support, or where it fails."""
    head = content.at(0, 12)
    ffmpeg_only = head.startswith((b"\xff\xf1", b"\xff\xf9", *_FFMPEG_ONLY)) or head[4:8] == b"ftyp"
    skips_libsndfile = ffmpeg_only or head.startswith((b"\xff", b"\0"))  # libmpg123 would write to the terminal

    def go_on(done: int) -> Iterator[Block]:
        try:
            return open_ffmpeg(content, report, stack, skip_samples=done, counted=decoder.frames is not None).blocks
        except (AudioError, OSError) as error:
            raise UnknownFormatError from error

    try:
        if skips_libsndfile:
            raise UnknownFormatError("it is not used")
        decoder = open_libsndfile(content, report, stack, go_on)
        if decoder.frames == 0:
            raise UnknownFormatError("it contains no samples")
        return decoder
    except UnknownFormatError as error:
        not_known = str(error)
    kind = "gsm" if report.name.lower().endswith(".gsm") else None  # a format without distinctive first bytes
    try:
        return open_ffmpeg(content, report, stack, kind=kind)
    except MissingDecoderError:
        if ffmpeg_only:
            raise
        raise AudioError(
            f"{report.name} is not a recording that libsndfile can read ({not_known}). Check that it is audio; for "
            "more formats: pip install av"
        ) from None
    except UnknownFormatError as error:
        tried = "" if skips_libsndfile else f"libsndfile: {not_known}; "
        raise AudioError(
            f"{report.name} is not a recording that can be decoded ({tried}FFmpeg: {error}). Check that it is audio "
            "and complete."
        ) from error


def _open_known(opener: Callable[..., Decoder], content: Content, report: Report, stack: ExitStack) -> Decoder:
    """Open a recording with a decoder that supports its format; raise an AudioError if it cannot decode it."""
    try:
        return opener(content, report, stack)
    except UnknownFormatError as error:
        raise AudioError(
            f"{report.name} is not a recording that can be decoded ({error}). Check that it is complete."
        ) from error
