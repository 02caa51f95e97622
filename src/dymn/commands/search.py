"""`dymn search`: which recordings sound like this one."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dymn.commands.options import (
    WHAT,
    Quiet,
    Threads,
    format_option,
    hush,
    model_option,
    note,
    number_option,
    output_option,
)
from dymn.errors import ConfigError

if TYPE_CHECKING:
    from dymn.inference.index import Hit, SoundIndex
    from dymn.inference.tagger import Tagger
    from dymn.system.arrays import Floats

SearchFormat = Literal["table", "csv", "json", "page"]
ENDINGS: dict[str, SearchFormat] = {
    "": "table",
    ".txt": "table",
    ".csv": "csv",
    ".json": "json",
    ".html": "page",
    ".htm": "page",
}
_TIME = r"(?:\d+:){0,2}\d+(?:\.\d+)?"
RANGE = re.compile(rf"(?P<path>.+?):(?P<start>{_TIME})-(?P<end>{_TIME})", re.DOTALL)

SLACK_SECONDS = 0.05
"""A recording that ends so much before the end of a query, or less, is not noted."""

IndexFolder = Annotated[
    Path, typer.Option("--index", "-i", metavar="INDEX", help="The folder that `dymn index` wrote.")
]


def search(
    query: Annotated[
        str,
        typer.Argument(
            metavar="SOUND", help="A recording, or a part of one, such as street.wav:12-15 or street.wav:1:05-1:10."
        ),
    ],
    index: IndexFolder,
    top_k: Annotated[int, number_option("Number of results.", WHAT, "--top-k", "-k")] = 20,
    start: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="Start of the part to search for.", rich_help_panel=WHAT),
    ] = None,
    end: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", min=0, help="End of the part to search for.", rich_help_panel=WHAT),
    ] = None,
    format: Annotated[
        SearchFormat | None,
        format_option(
            "table, csv, json, or page (HTML with a player for each result). The default follows the extension of "
            "--output (.txt, .csv, .json, .html), otherwise table."
        ),
    ] = None,
    output: Annotated[Path | None, output_option("Write to this file, atomically.")] = None,
    model: Annotated[str | None, model_option("The index's model, if its file has moved since `dymn index`.")] = None,
    threads: Threads = None,
    quiet: Quiet = False,
) -> None:
    """Find the windows of indexed recordings that are most similar to a sound.

    Similarity is the cosine of the angle between embeddings, at most 1. The sound is embedded with the index's model.

    Examples: `dymn search call.wav --index recordings.index`; `dymn search street.wav:12-15 --index recordings.index
    --output found.html`.
    """
    from dymn.commands.output import text_output
    from dymn.inference.index import open_index

    hush(quiet)
    name = format or chosen_format(output)
    path, start, end = parse_query(query, start, end)
    found = open_index(index)
    tagger = load(found, index, model, threads, quiet)
    vector, span = embed_query(tagger, found, path, start, end)
    note_query(path, start, end, span, quiet)
    hits = found.search(vector, top_k)
    with text_output(output) as stream:
        stream.write(written(name, (path, *span), hits, found))
    if output is not None:
        note(f"{output} was written: {len(hits)} of {len(found.table):,} windows.", quiet)


def chosen_format(output: Path | None) -> SearchFormat:
    """Return the format of a file's extension; raise a ConfigError if it is unknown."""
    from dymn.commands.options import check_ending

    if output is None:
        return "table"
    check_ending("--output", output, ENDINGS)
    return ENDINGS[output.suffix.lower()]


def parse_query(query: str, start: float | None, end: float | None) -> tuple[str, float, float | None]:
    """Return the path of a query, its start and its end in seconds (None: that of the recording)."""
    match = None if os.path.exists(query) else RANGE.fullmatch(query)
    if match is not None:
        if start is not None or end is not None:
            raise ConfigError(f"{query} contains a range. Leave out --start and --end.")
        query, start, end = match["path"], _seconds(match["start"]), _seconds(match["end"])
    if end is not None and end <= (start or 0.0):
        raise ConfigError(f"The part from {start or 0.0:g} to {end:g} s is empty. Its end must be after its start.")
    return query, start or 0.0, end


def _seconds(time: str) -> float:
    """Return 75.5 for "75.5" or "1:15.5", as other commands print times."""
    return sum(float(part) * 60.0**i for i, part in enumerate(reversed(time.split(":"))))


def load(found: SoundIndex, folder: Path, model: str | None, threads: int | None, quiet: bool) -> Tagger:
    """Open the model of an index; raise a ConfigError if the one of this name is another one."""
    from dymn.commands.recordings import load_tagger

    inside = found.parameters["layers"] != ["last"]
    tagger = load_tagger(model or found.model, None, threads, quiet, "auto", looks_inside=inside)
    digest = str(tagger.card.provenance.get("sha256", ""))
    if digest != found.digest:
        raise ConfigError(
            f"{folder} was created with {found.model} (digest {found.digest[:12]}…), but {model or found.model} has "
            f"the digest {digest[:12] or 'none'}…. Give the original model as --model, or index again."
        )
    return tagger


def embed_query(
    tagger: Tagger, found: SoundIndex, path: str, start: float, end: float | None
) -> tuple[Floats, tuple[float, float]]:
    """Return the embedding of a part of a recording, cut as the index was, and where it begins and ends."""
    from dymn.audio.stored import passage

    embedder = tagger.embedder(found.parameters["layers"])
    rate = embedder.sample_rate
    settings = {name: found.parameters[name] for name in ("window", "hop", "fill")}
    if start == 0.0 and end is None:
        whole = embedder.embed(path, **settings)
        return whole.vector, (0.0, whole.seconds)
    sound = passage(path, start, math.inf if end is None else end, rate)
    return embedder.embed(sound, rate, **settings).vector, (start, start + len(sound) / rate)


def note_query(path: str, start: float, end: float | None, span: tuple[float, float], quiet: bool) -> None:
    """Write notes on a part that was cut short by the end of its recording, and on one that is silent."""
    from dymn.audio.stored import is_silent
    from dymn.errors import AudioError

    if end is not None and span[1] < end - SLACK_SECONDS:
        note(f"{path} ends at {span[1]:g} s; only {start:g} to {span[1]:g} s is searched for.", quiet)
    with contextlib.suppress(AudioError):  # a pipe cannot be read twice
        if is_silent(path, start, math.inf if end is None else end):
            note(f"{path} is silent from {start:g} to {span[1]:g} s; the results are not meaningful.", quiet)


def written(name: SearchFormat, query: tuple[str, float, float], hits: Sequence[Hit], found: SoundIndex) -> str:
    """Return the results as text."""
    from dymn.errors import visible
    from dymn.inference.formats.text import clock
    from dymn.plots.search_page import Shown, search_page
    from dymn.system.files import csv_text

    path, start, end = query
    rows = [hit._replace(recording=short(hit.recording)) for hit in hits]
    if name == "csv":
        lines = [(hit.recording, f"{hit.start:.3f}", f"{hit.end:.3f}", f"{hit.score:.6f}") for hit in rows]
        return csv_text([("file", "start", "end", "score"), *lines])
    if name == "json":
        results = [
            {"file": hit.recording, "start": hit.start, "end": hit.end, "score": round(hit.score, 6)} for hit in rows
        ]
        about = {"model": found.model, "digest": found.digest, "windows": len(found.table)}
        asked = {"file": path, "start": round(start, 6), "end": round(end, 6)}
        return json.dumps(about | {"query": asked, "results": results}, indent=1, ensure_ascii=False) + "\n"
    if name == "page":
        words = f"The {len(hits)} most similar of {len(found.table):,} windows, by {found.model}"
        shown = [Shown(hit.recording, *row) for hit, row in zip(hits, rows, strict=True)]
        return search_page(Shown(path, path, start, end), shown, words)
    return "".join(
        f"{hit.score:.3f}  {clock(hit.start)} to {clock(hit.end)}  {visible(hit.recording)}\n" for hit in rows
    )


def short(path: str) -> str:
    """Return a path relative to the working folder, if that is shorter."""
    try:
        return min(os.path.relpath(path), path, key=len)
    except ValueError:  # on another drive
        return path
