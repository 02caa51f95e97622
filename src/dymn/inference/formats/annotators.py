"""The formats of annotation programs: Audacity, Raven, Label Studio."""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple
from urllib.parse import quote

from dymn.inference.formats.layout import Layout, R
from dymn.inference.formats.origin import Origin
from dymn.inference.windows import Result, is_last

RAVEN_COLUMNS = (
    "Selection",
    "View",
    "Channel",
    "Begin Time (s)",
    "End Time (s)",
    "Low Freq (Hz)",
    "High Freq (Hz)",
    "Begin Path",
    "File Offset (s)",
    "Annotation",
    "Score",
)
HIGHEST_HZ = 16_000.0
"""The highest frequency of the networks' input, and of a selection."""
LOCAL_FILES = "/data/local-files/?d="
"""Where Label Studio serves the files below the folder LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT."""


class Extent(NamedTuple):
    """The length of a recording in seconds, and the highest frequency of a selection in it."""

    seconds: float
    high: float


def audacity(results: Iterable[R], layout: Layout[R], origin: Origin) -> Iterator[str]:
    """Write a label track: start, end and label with tabs between."""
    for result in results:
        for span in layout.spans(result) if result.error is None else ():
            of = f" (channel {result.channel.number})" if result.channel else ""
            yield f"{span.start:.6f}\t{span.end:.6f}\t{_cell(span.label)}{of}\n"


def raven(results: Iterable[R], layout: Layout[R], origin: Origin) -> Iterator[str]:
    """Write a selection table. The times of several recordings are those of a sequence of their files.

    So a begin time is that in the file, plus the lengths of all recordings before that can be read, by their headers.
    With the clock, a last column has the absolute time of each begin.
    """
    clock = origin.parameters.get("clock") == "auto"
    yield "\t".join((*RAVEN_COLUMNS, *["Time"] * clock)) + "\n"
    numbers, before, length = itertools.count(1), 0.0, 0.0
    for result in results:
        if result.error is None:
            length, high = _extent(result, float(origin.parameters.get("speed", 1)))
            number = result.read_channel or 1
            path = _cell(os.path.abspath(result.name) if os.path.exists(result.name) else result.name)
            for span in layout.spans(result):
                begin, end = before + span.start, before + span.end
                time = "\t" + (result.begin.at(span.start) if result.begin else "") if clock else ""
                yield (
                    f"{next(numbers)}\tSpectrogram 1\t{number}\t{begin:.6f}\t{end:.6f}\t0.0\t{high:.1f}\t"
                    f"{path}\t{span.start:.6f}\t{_cell(span.label)}\t{span.score:.4f}{time}\n"
                )
        if is_last(result):
            before, length = before + length, 0.0


def label_studio(results: Iterable[R], layout: Layout[R], origin: Origin) -> Iterator[str]:
    """Write a list of tasks with predictions, as Label Studio imports it.

    The labels are those of a control "label" for an object "audio", which plays the field "audio" of the data.
    """
    before = "[\n"
    for number, result in enumerate(result for result in results if result.error is None):
        spans = list(layout.spans(result))
        channel = {} if result.read_channel is None else {"channel": result.read_channel - 1}
        regions = [
            {
                "id": f"{number}_{place}",
                "from_name": "label",
                "to_name": "audio",
                "type": "labels",
                "original_length": round(result.seconds, 6),
                "score": round(span.score, 6),
                "value": {"start": round(span.start, 6), "end": round(span.end, 6), "labels": [span.label]} | channel,
            }
            for place, span in enumerate(spans)
        ]
        prediction = {
            "model_version": origin.model,
            "score": round(max((span.score for span in spans), default=0.0), 6),
            "result": regions,
        }
        task = {"data": {"audio": _address(result.name)}, "predictions": [prediction]}
        yield before + json.dumps(task, ensure_ascii=False)
        before = ",\n"
    yield "[]\n" if before == "[\n" else "\n]\n"


def _extent(result: Result, speed: float) -> Extent:
    """Return the extent in a recording's header, or else in its result, for a recording played at a speed."""
    from dymn.audio.reading import probe
    from dymn.errors import AudioError

    try:
        info = probe(result.name)
    except AudioError:  # standard input, an address, a damaged recording
        return Extent(result.seconds, HIGHEST_HZ / speed)
    seconds = result.seconds if info.frames is None or result.partial else info.frames / info.sample_rate
    return Extent(seconds, min(HIGHEST_HZ / speed, info.sample_rate / 2))


def _address(name: str) -> str:
    """Return where Label Studio finds a recording: an address as it is, a path below its folder of local files."""
    return name if "://" in name else LOCAL_FILES + quote(name.replace(os.sep, "/").lstrip("/"))


def _cell(text: str) -> str:
    return re.sub(r"[\t\r\n]+", " ", text)
