"""`dymn map`: all sounds of an index on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from dymn.commands.options import WHAT, Quiet, check_ending, hush, note, number_option, output_option, seconds_option
from dymn.commands.output import check_file
from dymn.commands.search import IndexFolder, short

Projection = Literal["pca", "umap"]
"""The keys of `dymn.plots.map_page.PROJECTIONS`."""


def map(
    index: IndexFolder,
    output: Annotated[Path, output_option("The page to write (.html).")],
    points: Annotated[
        int, number_option("Show at most this many windows, drawn at random.", WHAT, least=2, most=20_000)
    ] = 1000,
    seconds: Annotated[
        float, seconds_option("Length of each window's audio that is included in the page.", WHAT, least=0.1, most=30)
    ] = 2.0,
    projection: Annotated[
        Projection,
        typer.Option(
            help="How embeddings become positions: pca (their first two principal components), or umap, which keeps "
            "similar sounds together and distorts distances (needs dymn\\[umap]).",
            rich_help_panel=WHAT,
        ),
    ] = "pca",
    quiet: Quiet = False,
) -> None:
    """Draw the windows of an index on a page as points that play their sound when clicked; similar sounds are close.

    Positions are the first two principal components of the embeddings, or those of UMAP. Colours show the folders of
    the recordings.

    Example: `dymn map --index recordings.index --output map.html`.
    """
    from dymn.commands.progress import counting_bar
    from dymn.inference.index import open_index
    from dymn.plots.map_page import chosen, map_page, umap_class
    from dymn.plots.search_page import Shown
    from dymn.system.files import atomic_write

    hush(quiet)
    check_ending("--output", output, [".html", ".htm"])
    check_file(output)
    if projection == "umap":
        umap_class()  # an error before anything is computed, if it is not installed
    found = open_index(index)
    keys = chosen(found, points)
    windows = [found.table.window(key) for key in keys.tolist()]
    shown = [Shown(path, short(path), start, end) for path, start, end in windows]
    about = f"{len(keys):,} of {len(found.table):,} windows, by {found.model}"
    with counting_bar("Sounds", quiet) as progress:
        report = progress or (lambda done, total: None)
        text = map_page(found.vectors(keys), shown, about, seconds, report, projection)
    with atomic_write(output) as file:
        file.write(text.encode())
    note(f"{output} was written: {about}.", quiet)
