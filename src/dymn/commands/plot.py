"""Pictures and pages of recordings, for `dymn tag --plot`."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dymn.commands.options import note
from dymn.errors import ConfigError, DymnError
from dymn.system.files import check_writable

if TYPE_CHECKING:
    from dymn.inference.files import Recording
    from dymn.inference.selection import TagSettings
    from dymn.inference.tagger import Tagger
    from dymn.inference.windows import AudioLike
    from dymn.plots.overview import Overview

ENDINGS = (".png", ".svg", ".pdf", ".html")
MOST_ROWS = 12


def check_plot(plot: Path, found: Sequence[str | Path]) -> None:
    """Raise an error, before any work is done, if a picture cannot be drawn or written, or would be a recording."""
    from dymn.plots.style import require

    if plot.suffix.lower() != ".html":
        require()
    check_writable(plot)
    if len(found) > 1:
        if plot.suffix.lower() in ENDINGS or (plot.exists() and not plot.is_dir()):
            raise ConfigError(
                f"There are {len(found)} recordings, but --plot {plot} is a single file. Give a folder, which "
                "receives an image for each."
            )
        return
    if plot.is_dir():
        return
    if plot.suffix.lower() not in ENDINGS:
        raise ConfigError(
            f"--plot {plot} has an unknown extension. Allowed: {', '.join(ENDINGS)}, or an existing folder."
        )
    if plot.exists() and any(path.exists() and path.samefile(plot) for path in map(Path, found)):
        raise ConfigError(f"--plot {plot} is one of the recordings. Give another file.")


class Pictures:
    """Tags recordings and draws one into a file, or each into a folder; each is opened and decoded once.

    Attributes:
        written: how many pictures there are.
    """

    def __init__(self, plot: Path, settings: TagSettings) -> None:
        self.written = 0
        self._plot, self._settings = plot, settings
        # otherwise a page plays the samples that were tagged: another channel, or amplified
        self._is_plain = (settings.channel, settings.track, settings.gain, settings.band) == ("mix", None, 0.0, None)
        self._in_folder, self._suffix = False, ""
        self._names: set[str] = set()
        self._failure: Exception | None = None

    def check(self, found: Sequence[str | Path]) -> None:
        """Raise an error if recordings do not fit the picture; see `check_plot`."""
        check_plot(self._plot, found)
        self._in_folder = len(found) != 1 or self._plot.is_dir()
        self._suffix = ".png" if self._in_folder else self._plot.suffix.lower()

    def tag_files(
        self,
        tagger: Tagger,
        sources: Iterable[AudioLike],
        *,
        batch_size: int | None = None,
        workers: int = 0,
        progress: Callable[[str, float], None] | None = None,
    ) -> Iterator[Recording]:
        """Yield recordings as `Tagger.tag_files` does, and draw each after that: a failed picture loses no tags."""
        from dymn.plots.overview import tag_with_overview
        from dymn.plots.timeline_page import PageSound, played

        rows = min(self._settings.top_k or MOST_ROWS, MOST_ROWS)
        for source in sources:
            with _opened(source) as file:
                as_it_is = self._is_plain and isinstance(file, io.IOBase) and played(file)
                heard = PageSound() if self._suffix == ".html" and not as_it_is else None
                recording, seen = tag_with_overview(
                    tagger,
                    file,
                    self._settings,
                    rows,
                    batch_size=batch_size,
                    progress=progress,
                    heard=None if heard is None else heard.append,
                )
                yield recording
                if seen is not None and self._failure is None:
                    self._draw(seen, file if heard is None else heard.samples())

    def _draw(self, seen: Overview, sound: AudioLike) -> None:
        from dymn.commands.output import free_name
        from dymn.plots.timeline import save_picture
        from dymn.plots.timeline_page import save_page

        path = self._plot / free_name(f"{Path(seen.name).stem}.png", self._names) if self._in_folder else self._plot
        try:
            if self._suffix == ".html":
                save_page(seen, sound, path)
            else:
                save_picture(seen, path)
            self.written += 1
        except (DymnError, OSError) as error:
            self._failure = error

    def finish(self, quiet: bool) -> None:
        """Note whether pictures were written, or raise the error that ended the drawing."""
        if self._failure is not None:
            raise self._failure
        note(f"{self._plot} was {'written' if self.written else 'not written'}.", quiet)


@contextmanager
def _opened(source: AudioLike) -> Iterator[AudioLike]:
    """Yield the open file of a path, or the source itself if it is not a path or cannot be opened."""
    with ExitStack() as stack:
        if isinstance(source, (str, Path)) and Path(source).is_file():
            with suppress(OSError):  # reading it raises the error
                source = stack.enter_context(open(source, "rb"))
        yield source
