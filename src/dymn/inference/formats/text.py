"""Times and probabilities as text for readers."""

from __future__ import annotations

from dymn.errors import visible
from dymn.inference.windows import Result

BAR_LENGTH = 20


def clock(seconds: float, digits: int = 1) -> str:
    """Return a time such as 5.0 s as text such as 0:05.0, with hours where there are any."""
    unit = 10**digits
    minutes, rest = divmod(round(seconds * unit), 60 * unit)
    hours, minutes = divmod(minutes, 60)
    text = f"{rest / unit:0{3 + digits}.{digits}f}"
    return f"{hours}:{minutes:02d}:{text}" if hours else f"{minutes}:{text}"


def heading(result: Result) -> str:
    """Return the line above the results of a recording: its name, its length, its channel and when it began."""
    channel = "" if result.channel is None else f"  channel {result.channel.number} of {result.channel.of}"
    begin = "" if result.begin is None else f"  from {result.begin.at(0)}"
    return f"{visible(result.name)}{channel}  ({clock(result.seconds)}){begin}\n"


def bar(score: float, plain: bool = False) -> str:
    """Return a probability as a bar of up to 20 letters, in ASCII if `plain`."""
    if plain:
        return ("#" * round(score * BAR_LENGTH)).ljust(BAR_LENGTH)
    whole, eighths = divmod(round(score * BAR_LENGTH * 8), 8)
    return ("█" * whole + " ▏▎▍▌▋▊▉"[eighths] * (eighths > 0)).ljust(BAR_LENGTH)


def dash(plain: bool = False) -> str:
    """Return what stands between the start and the end of a passage of time."""
    return "-" if plain else "–"
