"""What commands over recordings share: to find them, to load a model, to say what failed, to write."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer

from dymn.commands.options import Computes, Precisions, note
from dymn.errors import AudioError, ConfigError, DymnError, WeightsError

if TYPE_CHECKING:
    from dymn.commands.progress import Bar
    from dymn.inference.formats.tags import Run
    from dymn.inference.tagger import Recording, Tagger
    from dymn.ray import Engine
    from dymn.weights.download import Progress

MANY = 2**31
"""More recordings than there are CPUs."""


class Result(Protocol):
    """What became of a recording."""

    @property
    def name(self) -> str:
        """Its path as given."""

    @property
    def error(self) -> DymnError | None:
        """Why there is nothing else, or None."""


R = TypeVar("R", bound=Result)


def find(paths: Sequence[str], urls: bool = False) -> tuple[Sequence[str | Path], list[Recording]]:
    """Return the recordings that paths, or URLs too, name, in the order of the paths, and failures for those that name none."""
    from dymn.audio import reading
    from dymn.inference.tagger import Recording

    if urls:
        from dymn.ray import find as find_all

        sources, lost = find_all(paths)
        return sources, [Recording(path, error=error) for path, error in lost]
    found: dict[str, Path] = {}
    failed = []
    for path in paths:
        try:
            found |= {str(item if str(item) == "-" else item.absolute()): item for item in reading.find(path)}
        except AudioError as error:
            failed.append(Recording(path, error=error))
    return list(found.values()), failed


def unreadable(paths: Iterable[str]) -> list[Recording]:
    """Return a failure for each recording that paths name if none of them can be opened; nothing if one can.

    So a wrong path is told before PyTorch and a model are loaded. What can be read only once is taken to be good.
    """
    from dymn.audio import reading
    from dymn.inference.tagger import Recording

    failed: dict[Path, Recording] = {}
    for path in paths:
        lost = []
        try:
            for item in reading.expand(path):
                if str(item) == "-" or (os.path.lexists(item) and not os.path.isfile(item)):  # these two raise nothing
                    return []
                try:
                    reading.probe(item)
                    return []
                except AudioError as error:
                    lost.append(Recording(str(item), error=error))
        except AudioError as error:
            lost.append(Recording(path, error=error))
        for recording in sorted(lost, key=lambda recording: recording.name):
            failed.setdefault(Path(recording.name).absolute(), recording)
    return list(failed.values())


def ray_engine(
    address: str | None, workers: int | None, threads: int | None, device: str | None, backend: Computes, plot: Path | None = None
) -> Engine | None:
    """Return what works on Ray at an address, None without one.

    Raises:
        ConfigError: if there is to be a plot, too, or another backend than PyTorch.
    """
    if address is None:
        return None
    if backend == "onnx":
        raise ConfigError(f"--backend {backend} computes on this machine alone. Give it without --ray.")
    if plot is not None:
        raise ConfigError("--plot is drawn from recordings on this machine. Give it without --ray.")
    from dymn.ray import Engine

    return Engine(address, workers, threads or 1, device)


def check_output(output: Path | None, name: str, found: Sequence[str | Path]) -> None:
    """Refuse, before any work is done, an output that cannot be written or would overwrite a recording.

    Raises:
        ConfigError: the message says what to give instead.
    """
    if name == "audacity" and len(found) > 1 and (output is None or (output.exists() and not output.is_dir())):
        raise ConfigError(
            f"A label track belongs to one recording, and there are {len(found)}. Give a folder as --output, for one file each."
        )
    if output is None:
        return
    if output.is_dir() and not (name == "audacity" and len(found) > 1):
        raise ConfigError(f"--output {output} is a folder. Give the name of a file to write to.")
    if output.exists() and any(path.exists() and path.samefile(output) for path in map(Path, found)):
        raise ConfigError(f"--output {output} is one of the recordings. Give another file to write to.")


def default_workers(threads: int | None, recordings: int) -> int:
    """Return how many threads decode: one a CPU that may be used, and no more than there are recordings or threads asked for."""
    from dymn.system.cpus import available_cpus

    return max(1, min(available_cpus(), recordings, threads or recordings))


def load_tagger(
    model: str | None,
    device: str | None,
    threads: int | None,
    quiet: bool,
    backend: Computes = "torch",
    precision: Precisions = "float32",
    looks_inside: bool = False,
) -> Tagger:
    """Load the model that was named, or the default one, and say which that is.

    With the backend "auto", PyTorch is not imported where compiled code does all that is asked for: not on other devices or in another
    precision, not if the command looks inside the network (`looks_inside`), and not the first time that a model is used.
    """
    if backend == "onnx":
        if precision != "float32":
            raise ConfigError(f"--precision is {precision}; a file for --backend onnx has its own. See `dymn export --precision`.")
        return load_onnx(model, device, threads)
    from dymn.commands.progress import download_bar
    from dymn.inference.tagger import Tagger
    from dymn.runtime.compiled_backend import keep_packed, open_packed
    from dymn.system.cpus import may_have_gpu
    from dymn.weights.default import choose_default
    from dymn.weights.find import find_weights

    on_cpu = device == "cpu" or (device is None and not may_have_gpu())
    packs = backend == "auto" and on_cpu and precision == "float32" and not looks_inside
    with download_bar(quiet) as progress:
        named, reason = (model, "") if model is not None else choose_default(progress)
        weights = find_weights(named, progress) if packs else None
        packed = None if weights is None else open_packed(weights, threads)
        tagger = Tagger(packed) if packed is not None else load_in_torch(named, device, threads, precision, progress)
    if reason:
        note(reason, quiet)
    if weights is not None and packed is None:
        keep_packed(tagger.model, weights)
    return tagger


def load_in_torch(model: str, device: str | None, threads: int | None, precision: Precisions, progress: Progress | None) -> Tagger:
    """Load a model in PyTorch, to be computed on a device.

    Raises:
        ConfigError: if there is no such device, or the name is no model's.
    """
    from dymn.inference.tagger import Tagger
    from dymn.system.devices import resolve_device, use_threads
    from dymn.weights import REGISTRY, load_model

    resolve_device(device)
    use_threads(threads)
    if model in REGISTRY or "/" in model or Path(model).exists():
        return Tagger(load_model(model, progress=progress), device, precision=precision)
    try:
        return Tagger(load_model(model, progress=progress), device, precision=precision)
    except WeightsError as error:
        raise ConfigError(str(error)) from error


def load_onnx(model: str | None, device: str | None, threads: int | None) -> Tagger:
    """Open an exported model for ONNX Runtime, without PyTorch."""
    from dymn.inference.tagger import Tagger
    from dymn.runtime.onnx_backend import SHIPPED

    if device not in (None, "cpu"):
        raise ConfigError(f"--device is {device!r}; with --backend onnx only cpu is possible.")
    try:
        return Tagger.from_onnx(model or SHIPPED, threads)
    except WeightsError as error:
        raise ConfigError(str(error)) from error


def describe(tagger: Tagger | None, model: str | None, parameters: dict[str, Any], per_window: bool = False) -> Run:
    """Return what is written beside answers, so that they can be made again; without a tagger, beside failures."""
    from dymn import __version__
    from dymn.config import ModelCard
    from dymn.inference.formats.tags import Run

    card = tagger.card if tagger else ModelCard()
    return Run(__version__, card.name or model or "", str(card.provenance.get("sha256", "")), parameters, per_window)


def follower(bar: Bar) -> Callable[[str, float], None]:
    """Return a function that moves the bar on, by recordings and by the seconds that are done of the present one."""
    from dymn.audio import reading

    lengths: dict[str, float | None] = {}

    def follow(name: str, seconds: float) -> None:
        if name not in lengths:
            try:
                lengths[name] = None if name == "-" else reading.probe(name).seconds
            except AudioError:
                lengths[name] = None
        length = lengths[name]
        bar.update(len(lengths) - 1 + (min(1.0, seconds / length) if length else 0.0), Path(name).name)

    return follow


class Failures:
    """Recordings that could not be tagged: said as they come, and counted."""

    def __init__(self) -> None:
        self.count = 0
        self.names: set[str] = set()

    def reported(self, recordings: Iterable[R]) -> Iterator[R]:
        """Yield the recordings, after a message on standard error for each that failed."""
        for recording in recordings:
            if recording.error is not None:
                self.count += 1
                self.names.add(recording.name)
                typer.echo(f"dymn: {recording.error}", err=True)
            yield recording


def write(
    recordings: Iterable[R], run: Run, writer: Callable[[Iterable[R], Run], Iterator[str]], output: Path | None, separately: bool
) -> None:
    """Write recordings as `writer` puts them to a file or standard output, or separately to files in a folder."""
    from dymn.commands.output import free_name, text_output

    if separately and output is not None:
        used: set[str] = set()
        for recording in recordings:
            if recording.error is None:
                path = output / free_name(f"{Path(recording.name).stem}.txt", used)
                with text_output(path) as stream:
                    stream.writelines(writer([recording], run))
        return
    with text_output(output) as stream:
        plain = "utf" not in (stream.encoding or "").lower()
        stream.writelines(writer(recordings, dataclasses.replace(run, plain=plain)))
