"""Options of commands that find events: how frames are scored, and how they become events."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from dymn.commands.options import seconds_option, threshold_option

WHEN = "Events"
How = Literal["combined", "activation", "windows", "frames"]
"""The keys of `dymn.inference.frames.METHODS`."""

EventMethod = Annotated[
    How | None,
    typer.Option(
        help="Score short overlapping windows (windows), the frames of the last feature map of long windows "
        "(activation), which is faster and locates events less accurately, or both (combined). frames is for "
        "frame-wise networks (fmn...), which compute scores of frames themselves.",
        rich_help_panel=WHEN,
        show_default="frames for fmn..., windows for ONNX files, else combined",
    ),
]
EventThreshold = Annotated[
    Any,
    threshold_option(
        "An event reaches at least this probability; the default is 0.1, and 0.2 for frames. auto and precise "
        "use the thresholds per label that `dymn fit` and `dymn calibrate` store in a model.",
        WHEN,
    ),
]
OffThreshold = Annotated[
    float | None,
    typer.Option(
        metavar="FROM 0 TO 1",
        max=1,
        help="An event lasts while its probability is at least this. The default is 0.3 of --threshold, or less "
        "where the probabilities nearby are low; for frames, it is --threshold.",
        rich_help_panel=WHEN,
    ),
]
Median = Annotated[
    float | None,
    seconds_option(
        "Length of a median filter over the probabilities. The default is 0, and 0.36 for frames.",
        WHEN,
        least=0,
        most=None,
    ),
]
MinGap = Annotated[
    float | None,
    seconds_option(
        "Join events of the same label that are at most this far apart. The default is 0.64, and 0 for frames.",
        WHEN,
        least=0,
        most=None,
    ),
]
MinDuration = Annotated[float, seconds_option("Drop shorter events.", WHEN, least=0, most=None)]
