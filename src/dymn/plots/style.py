"""The common style of all plots: palette, axes of time and frequency, and saving of figures.

Colours are those of Okabe and Ito and matplotlib's perceptually uniform maps, which colour-blind readers can tell
apart.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dymn.config import FrontEndConfig
from dymn.errors import ConfigError, visible
from dymn.system.arrays import Floats
from dymn.system.extras import needing
from dymn.system.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


INK, SOFT, FAINT = "#1b1b1f", "#63636b", "#dcdce2"
BLUE, ORANGE, GREEN, PINK, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
LOUDNESS, PROBABILITY, DEVIATION, SHARE = "magma", "cividis", "PuOr_r", "Blues"  # matplotlib's names of colour maps

FREQUENCIES = (250, 500, 1000, 2000, 4000, 8000, 16000)
STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200)
MAX_TICKS = 11


def new_figure(width: float, height: float, **options: Any) -> Figure:
    """Return an empty white figure of a size in inches, or raise a `MissingExtraError` without matplotlib."""
    require()
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor="white", **options)


def require() -> None:
    """Raise a `MissingExtraError` unless matplotlib is installed."""
    with needing("Drawing", "plot"):
        import matplotlib  # noqa: F401


def save_figure(figure: Figure, path: str | Path, dpi: int = 120) -> None:
    """Write a figure to a file whose ending is .png, .pdf or .svg.

    Raises:
        ConfigError: if matplotlib cannot write such a file.
        MissingExtraError: from `new_figure`, if matplotlib is not installed.
    """
    try:
        with atomic_write(path) as file:
            figure.savefig(file, dpi=dpi, format=Path(path).suffix[1:].lower())
    except ValueError as error:
        message = f"The plot {path} cannot be written: {error}. Use a name that ends in .png, .pdf or .svg."
        raise ConfigError(message) from error


def draw_spectrogram(axes: Axes, log_mel: Floats, front_end: FrontEndConfig, seconds: float) -> None:
    """Draw a log-mel spectrogram [n_mels, columns] with its frequency axis; the time axis is the caller's."""
    low, high = loudness_range(log_mel)
    extent = (0, seconds, 0, len(log_mel))
    image: dict[str, Any] = {"origin": "lower", "aspect": "auto", "interpolation": "nearest", "extent": extent}
    axes.imshow(log_mel, cmap=LOUDNESS, vmin=low, vmax=high, **image)
    axes.set_yticks(*frequency_ticks(front_end))
    axes.set_ylabel("kHz", fontsize=12, color=SOFT)


def loudness_range(log_mel: Floats) -> tuple[float, float]:
    """Return the log-mel values that get the darkest and the lightest colour; the second is above the first."""
    low, high = (float(value) for value in np.percentile(log_mel, [2, 99.7]))
    return low, max(high, low + 1e-3)


def frequency_ticks(front_end: FrontEndConfig) -> tuple[list[float], list[str]]:
    """Return positions on the mel axis, in bands from the lower edge, and their names in kHz."""

    def mel(frequency: float | npt.NDArray[Any]) -> Any:
        return 1127.0 * np.log(1.0 + np.asarray(frequency) / 700.0)

    low, high = mel(front_end.f_min), mel(front_end.f_max)
    shown = [frequency for frequency in FREQUENCIES if front_end.f_min < frequency < front_end.f_max]
    spacing = (high - low) / (front_end.n_mels + 1)
    positions = [float((mel(frequency) - low) / spacing - 0.5) for frequency in shown]
    return positions, [f"{frequency / 1000:g}" for frequency in shown]


def time_ticks(seconds: float) -> list[tuple[float, str]]:
    """Return round times up to `seconds`, each with its text."""
    step = next((step for step in STEPS if seconds / step < MAX_TICKS), STEPS[-1])
    places = [float(place) for place in np.arange(0, seconds + 1e-9, step)]
    return [(place, _clock(place, step, seconds)) for place in places]


def _clock(place: float, step: float, seconds: float) -> str:
    if step < 1:
        return f"{place:.1f}"
    if seconds < 60:
        return f"{place:.0f}"
    minutes, s = divmod(int(place), 60)
    if seconds < 3600:
        return f"{minutes}:{s:02d}"
    h, m = divmod(minutes, 60)
    return f"{h}:{m:02d}:{s:02d}" if step < 60 else f"{h}:{m:02d}"


def time_unit(seconds: float) -> str:
    """Return the unit of the texts of `time_ticks`."""
    return "seconds" if seconds < 60 else "minutes and seconds" if seconds < 3600 else "hours and minutes"


def shortened(text: str, limit: int) -> str:
    """Return a text without characters that cannot be drawn, cut with an ellipsis at `limit` characters."""
    text = visible(text)
    return text if len(text) <= limit else text[: limit - 1].rstrip(" ,(") + "…"
