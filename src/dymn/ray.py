"""Tags, embeddings and events of many recordings on Ray Data, on this machine or on a cluster.

Tasks decode recordings into windows, actors run the network, and the calling process combines the windows of a
recording into its result. Intermediate data are in Ray's object store. If a process dies, its work is repeated. The
batches depend only on the list of recordings, so results do not depend on which process computed them.
"""

from __future__ import annotations

import copy
import dataclasses
import glob
import importlib
import itertools
import logging
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import numpy as np

from dymn.audio import reading
from dymn.audio.clocks import Begin
from dymn.audio.notes import Notes
from dymn.audio.settings import PLAIN, Channel, ReadSettings
from dymn.audio.sources import reason
from dymn.audio.windows import Filled, fill
from dymn.config import check
from dymn.errors import AudioError, ConfigError, DymnError
from dymn.inference.discovery import Discovery, whole
from dymn.inference.embedding import Embedding, EmbedSettings
from dymn.inference.events import EventRecording, EventSettings, collect_events
from dymn.inference.files import Recording, collect_tags
from dymn.inference.formats.writers import require_parquet
from dymn.inference.frames import FrameSettings, chosen_labels, collect_parts
from dymn.inference.makers import frame_maker
from dymn.inference.selection import TagSettings
from dymn.inference.tagger import Tagger
from dymn.inference.windows import Opened, Piece, computed, pieces, source_name
from dymn.runtime.backend import CPU_BATCH_SIZE
from dymn.runtime.scores import ThresholdOrName
from dymn.runtime.vocabulary import Relabelled
from dymn.system.arrays import Floats
from dymn.system.extras import needing

if TYPE_CHECKING:
    from dymn.models.mobilenet import MobileNet

LOCAL = "local"
"""The address that starts Ray on this machine."""
RECORDINGS = 64
"""Maximum number of recordings per task."""
ACTOR_SHARE = 0.75
"""The share of a CPU that Ray reserves for a thread of the network; the rest is for the tasks that decode."""

Wanted = str | Sequence[str] | FrameSettings | None
"""What is computed of windows: the layers of an embedding, frames, or probabilities (None)."""
Location = str | Path


@dataclass(frozen=True)
class Engine:
    """Processes recordings with Ray.

    Attributes:
        address: address of a cluster, such as "auto" or "10.0.0.1:6379"; "local" starts Ray on this machine for one
            run, with loopback connections only. If Ray is already running in this process, it is used.
        workers: number of actors that run the network; by default, one per GPU or, without a GPU, one per `threads`
            CPUs.
        threads: number of CPU threads per actor.
        device: device of the actors; by default, the GPU that Ray assigns to them, otherwise the CPU.
        modules: names of imported user modules that are sent to the actors, such as an attention mechanism.
    """

    address: str = LOCAL
    workers: int | None = None
    threads: int = 1
    device: str | None = None
    modules: Sequence[str] = ()

    def __post_init__(self) -> None:
        check(self.workers is None or self.workers >= 1, f"workers is {self.workers}; on Ray it must be at least 1.")
        check(self.threads >= 1, f"threads is {self.threads}; it must be at least 1.")

    def tag_files(
        self,
        tagger: Tagger,
        sources: Iterable[Location],
        settings: TagSettings | None = None,
        *,
        batch_size: int | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[Recording]:
        """Tag recordings as `Tagger.tag_files` does.

        Args:
            tagger: its PyTorch network is sent to the actors.
            sources: paths, which must be valid on every machine, and URLs that fsspec can open.
            settings: settings of tagging.
            batch_size: number of windows per batch; the default is 4 on a CPU and 32 on other devices.
            progress: called with the name of a recording and the number of its seconds that have been processed.

        Yields:
            one `Recording` per source, in order. Recordings that cannot be read have an `error`; the others are still
            tagged.

        Raises:
            ConfigError: if a setting does not fit the model, or there is no Ray at the address.
            MissingExtraError: if Ray is not installed.
            DymnError: if Ray ends the run.
        """
        settings = settings or TagSettings()
        windows = _Windows(tagger.sample_rate, settings.window, settings.hop, settings.fill, settings)
        return collect_tags(
            self._computed(tagger, None, sources, windows, batch_size), tagger.backend, settings, progress
        )

    def embed_files(
        self,
        tagger: Tagger,
        layers: str | Sequence[str],
        sources: Iterable[Location],
        settings: EmbedSettings | None = None,
        *,
        batch_size: int | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[Embedding]:
        """Embed recordings as `tagger.embedder(layers).embed_files` does.

        Arguments and errors are those of `tag_files`.
        """
        settings = settings or EmbedSettings()
        windows = _Windows(tagger.sample_rate, settings.window, settings.hop, settings.fill, settings)
        return tagger.embedder(layers).collect(self._computed(tagger, layers, sources, windows, batch_size), progress)

    def event_files(
        self,
        tagger: Tagger,
        sources: Iterable[Location],
        settings: EventSettings | None = None,
        *,
        batch_size: int | None = None,
        progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[EventRecording]:
        """Find events as `dymn.inference.events.event_files` does; arguments and errors are those of `tag_files`."""
        settings = (settings or EventSettings()).of(tagger.backend)
        maker, labels = frame_maker(tagger.backend, settings), chosen_labels(tagger.backend, settings)
        windows = _Windows(tagger.sample_rate, maker.window, maker.hop, maker.fill, settings, maker.joins)
        shape = (-1,) if settings.method == "windows" else (-1, len(labels))  # rows come flat
        computed = self._computed(tagger, settings, sources, windows, batch_size)
        rows = ((piece, None if row is None else row.reshape(shape)) for piece, row in computed)
        return collect_events(collect_parts(rows, maker, tagger.sample_rate, progress), labels, settings, tagger.card)

    def _computed(
        self, tagger: Tagger, wanted: Wanted, sources: Iterable[Location], windows: _Windows, batch_size: int | None
    ) -> Iterator[tuple[Piece, Floats | None]]:
        """Return what `dymn.inference.windows.computed` yields, computed by Ray."""
        check(batch_size is None or batch_size >= 1, f"batch_size is {batch_size}; it must be at least 1.")
        found = list(sources)
        check("-" not in map(str, found), "Standard input cannot be read by other processes. Give paths or URLs.")
        network = (
            copy.deepcopy(tagger.model).cpu(),
            wanted,
            self.device,
            self.threads,
            tagger.backend.precision,
            batch_size,
            windows,
            (tagger.backend.members, tagger.backend.threshold) if isinstance(tagger.backend, Relabelled) else None,
        )
        return self._run(found, windows, network, batch_size or CPU_BATCH_SIZE)

    def _run(
        self, found: list[Location], windows: _Windows, network: tuple[Any, ...], batch: int
    ) -> Iterator[tuple[Piece, Floats | None]]:
        with _running(self.address) as ray:
            for name in self.modules:  # by value: the machines of a cluster may not have them
                ray.cloudpickle.register_pickle_by_value(sys.modules[name])
            resources = ray.cluster_resources()
            cpus, gpus = resources.get("CPU", 1.0), int(resources.get("GPU", 0)) if self.device in (None, "cuda") else 0
            actors = self.workers or gpus or max(1, int(cpus) // self.threads)
            # Whole batches, and four tasks or more for each actor, so that all end at about the same time.
            size = min(math.ceil(RECORDINGS / batch), math.ceil(len(found) / (4 * actors * batch))) * batch
            chunks = [_chunk(found[begin : begin + size], begin) for begin in range(0, len(found), size or 1)]
            if not chunks:
                return
            decoded = ray.data.from_arrow(chunks).map_batches(
                _decode,
                fn_args=(windows,),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=1.0 if gpus else 1.0 - ACTOR_SHARE,
            )
            done = decoded.map_batches(
                _Network,
                fn_constructor_args=network,
                batch_size=None,
                batch_format="pyarrow",
                compute=ray.data.ActorPoolStrategy(size=min(actors, len(chunks))),
                num_cpus=0.0 if gpus else ACTOR_SHARE * min(self.threads, cpus / actors),
                num_gpus=1.0 if gpus else 0.0,
            )
            done.context.execution_options.preserve_order = True
            done.context.enable_progress_bars = done.context.print_on_execution_start = False
            logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # errors are raised here, too
            for table in done.iter_batches(batch_size=None, batch_format="pyarrow"):
                for place, piece in _pieces(table):
                    name = source_name(found[place])
                    error = piece.error and AudioError(str(piece.error).replace(whole(found[place]), name))
                    recording = dataclasses.replace(piece.recording, name=name, speed=windows.read.speed)
                    yield piece._replace(recording=recording, features=None, error=error), piece.features


@dataclass(frozen=True)
class _Windows:
    """How recordings are read and split: sample rate, seconds of a window and between starts, and the filling."""

    rate: int
    window: float
    hop: float | None
    how: str
    read: ReadSettings = PLAIN
    joins: bool = True


def _chunk(sources: Sequence[Location], begin: int) -> Any:
    """Return the table of a task: recordings, and their places in the list of all."""
    arrow, _ = require_parquet()
    paths = arrow.array([os.fsencode(whole(source)) for source in sources], arrow.binary())
    return arrow.table({"place": list(range(begin, begin + len(sources))), "path": paths})


def _decode(table: Any, windows: _Windows) -> Iterator[Any]:
    """Yield recordings as rows: their windows as they are before they are filled up, and their ends."""
    for place, path in zip(table["place"].to_pylist(), map(os.fsdecode, table["path"].to_pylist()), strict=True):
        source = cast(BinaryIO, _Remote(path)) if "://" in path else path
        cutting = windows.rate, None, windows.window, windows.hop, "bare"
        for piece in pieces([source], *cutting, read=windows.read, joins=windows.joins):
            yield _table([(place, piece, piece.features)])


class _Network:
    """An actor: from rows of windows to rows of results of the network."""

    def __init__(
        self,
        model: MobileNet,
        wanted: Wanted,
        device: str | None,
        threads: int,
        precision: str,
        batch_size: int | None,
        windows: _Windows,
        groups: tuple[Mapping[str, Sequence[int]], ThresholdOrName] | None = None,
    ) -> None:
        tagger = Tagger(model, device, threads, precision=precision)
        backend = tagger.backend if groups is None else Relabelled(tagger.backend, groups[0], {}, groups[1])
        self.prepare = backend.features
        self.compute: Callable[[Floats], Iterable[Floats]] = lambda rows: backend.run(rows).probabilities
        if isinstance(wanted, FrameSettings):
            self.compute = frame_maker(backend, wanted).compute
        elif wanted is not None:
            self.compute = tagger.embedder(wanted).run
        self.batch_size = batch_size or backend.batch_size
        self.how = windows.how
        self.length = round(windows.window * windows.rate)
        self.step = round((windows.hop or windows.window) * windows.rate)

    def __call__(self, table: Any) -> Any:
        places, found = itertools.tee(self._prepared(table))
        done = computed((piece for _, piece in found), self.compute, self.batch_size)
        return _table([(place, piece, row) for (piece, row), (place, _) in zip(done, places, strict=True)])

    def _prepared(self, table: Any) -> Iterator[tuple[int, Piece]]:
        """Yield rows as pieces; windows that follow each other in a recording share what they overlap in."""
        for (place, is_window), some in itertools.groupby(
            _pieces(table), lambda row: (row[0], row[1].features is not None)
        ):
            found = [piece for _, piece in some]
            if is_window:
                samples = [piece.features for piece in found if piece.features is not None]
                filled = (Filled(fill(one, self.length, self.how), len(one)) for one in samples)
                found = [
                    piece._replace(features=row)
                    for piece, row in zip(found, self.prepare(filled, self.step), strict=True)
                ]
            for piece in found:
                yield place, piece


def _table(rows: Sequence[tuple[int, Piece, Floats | None]]) -> Any:
    """Return rows, each the place of a recording, a piece of it, and float32 values, as a table of Arrow."""
    arrow, _ = require_parquet()
    columns = {
        "place": arrow.array([place for place, _, _ in rows], arrow.int64()),
        "n_samples": arrow.array([piece.recording.n_samples for _, piece, _ in rows], arrow.int64()),
        "start": arrow.array([piece.start for _, piece, _ in rows], arrow.float64()),
        "end": arrow.array([piece.end for _, piece, _ in rows], arrow.float64()),
        "values": arrow.array([None if values is None else values.tobytes() for _, _, values in rows], arrow.binary()),
        "channel": arrow.array([piece.recording.channel for _, piece, _ in rows], arrow.list_(arrow.int64())),
        "begin": arrow.array(
            [(begin := piece.recording.begin) and (begin.time.isoformat(), begin.source) for _, piece, _ in rows],
            arrow.list_(arrow.string()),
        ),
        "notes": arrow.array([list(piece.recording.notes.lines) for _, piece, _ in rows], arrow.list_(arrow.string())),
        "partial": arrow.array([piece.recording.notes.partial for _, piece, _ in rows], arrow.bool_()),
        "read_channel": arrow.array([piece.recording.notes.channel for _, piece, _ in rows], arrow.int64()),
        "error": arrow.array(
            [None if piece.error is None else str(piece.error) for _, piece, _ in rows], arrow.string()
        ),
    }
    return arrow.table(columns)


def _pieces(table: Any) -> Iterator[tuple[int, Piece]]:
    """Yield the rows of a table of `_table`: places, and pieces with the values."""
    for row in table.to_pylist():
        values = None if row["values"] is None else np.frombuffer(bytearray(row["values"]), np.float32)
        error = None if row["error"] is None else AudioError(row["error"])
        channel, begin = row["channel"] and Channel(*row["channel"]), row["begin"]
        clock = begin and Begin(datetime.fromisoformat(begin[0]), begin[1])
        notes = Notes(row["notes"], row["partial"], row["read_channel"])
        opened = Opened("", row["n_samples"], notes, channel=channel, begin=clock)
        yield row["place"], Piece(opened, row["start"], row["end"], values, error)


@contextmanager
def _running(address: str) -> Iterator[Any]:
    """Yield the module ray with Ray running; it is shut down afterwards if it was started here.

    By default, Ray sends usage statistics and listens to the network; its environment disables both unless the user's
    sets these variables.
    """
    if address == LOCAL:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # without clusters all servers bind to loopback
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # its errors on standard error are not ours
    with needing("Work on Ray", "ray"):
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    begun = not ray.is_initialized()
    if begun:
        local = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address == LOCAL else {}
        try:
            ray.init(address, logging_level=logging.ERROR, log_to_driver=False, **local)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"Cannot connect to Ray at {address!r}: {reason(error)}. Start a cluster, or use {LOCAL!r}."
            ) from error
    try:
        yield ray
    except ray.exceptions.RayError as error:
        raise DymnError(f"Ray ended the run: {_first_error(error)}") from error
    finally:
        if begun:
            ray.shutdown()


def _first_error(error: Exception) -> str:
    """Return the error of a worker: the first one in Ray's text, which contains whole tracebacks."""
    lines = re.sub(r"\x1b\[\d+m", "", str(error)).splitlines()
    return next(
        (line for line in lines if re.match(r"[\w.]*(Error|Exception): ", line)),
        lines[0] if lines else type(error).__name__,
    )


def find(paths: Iterable[str]) -> tuple[list[Location], list[tuple[str, AudioError]]]:
    """Return the recordings at paths and URLs, sorted within each, and the errors of paths without a recording."""
    with Discovery(paths, expand=expand) as discovery:
        return discovery.sorted(), discovery.lost


def expand(path: str, unlisted: Callable[[str, AudioError], None]) -> Iterable[Location]:
    """Return the recordings that a path or URL names; `unlisted` is called with folders that cannot be listed."""
    return _find_remote(path) if "://" in path else reading.expand(path, unlisted)


def _is_recording(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in reading.SUFFIXES and "/." not in name


def _find_remote(url: str) -> list[str]:
    is_pattern = glob.has_magic(url)
    if not is_pattern and _is_recording(url):
        return [url]
    import fsspec

    try:
        system, path = fsspec.core.url_to_fs(url)
        if not is_pattern and not system.isdir(path):
            return [url]
        below = system.glob(path) if is_pattern else system.find(path)
    except Exception as error:  # those of many libraries, which have nothing in common
        raise AudioError(f"{url} cannot be listed: {reason(error)}. Check the URL and your access to it.") from error
    if recordings := sorted(system.unstrip_protocol(name) for name in below if _is_recording(name)):
        return recordings
    raise AudioError(f"There is no recording at {url}. Recognised extensions: {', '.join(sorted(reading.SUFFIXES))}.")


class _Remote:
    """A file that fsspec opens at the first read, where errors are handled; the minimum of a file object."""

    def __init__(self, url: str) -> None:
        self.name = url
        self._file: Any = None

    def read(self, size: int) -> bytes:
        if self._file is None:
            import fsspec

            self._file = fsspec.open(self.name, "rb").open()
        return cast(bytes, self._file.read(size))
