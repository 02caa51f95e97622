"""Maps of an index as one HTML file: a point for each sound, similar ones close together."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt

from dymn.errors import ConfigError
from dymn.inference.index import SoundIndex
from dymn.plots.html import render
from dymn.plots.search_page import Shown, sound
from dymn.system.arrays import Array
from dymn.system.extras import needing

MAP_RATE = 16_000
"""The sample rate of the sounds, in Hz: there are many of them."""
GROUPS = 12
"""The most folders with a colour of their own."""
FEWEST = 5
"""The fewest vectors that UMAP is given."""


def chosen(found: SoundIndex, most: int) -> npt.NDArray[np.uint64]:
    """Return the keys of at most so many windows of an index, drawn at random but always the same, in order."""
    keys = np.concatenate([found.table.keys(place) for place in range(len(found.table.recordings))])
    if len(keys) <= most:
        return keys
    return np.sort(np.random.default_rng(0).choice(keys, most, replace=False))


def principal_components(vectors: Array) -> Array:
    """Return the first two principal components [N, 2] of vectors [N, D], the larger values of each being positive."""
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)  # by ascending variance
    places = centred @ axes[:, :-3:-1]
    largest = places[np.abs(places).argmax(axis=0), [0, 1]]
    turned: Array = (places * np.where(largest < 0, -1, 1)).astype(np.float32)
    return turned


def neighbourhoods(vectors: Array) -> Array:
    """Return places [N, 2] of vectors [N, D] by UMAP: what is similar by cosine stays close; the same at each call.

    McInnes et al., "UMAP: Uniform manifold approximation and projection for dimension reduction", 2018.

    Raises:
        ConfigError: if there are fewer than `FEWEST` vectors.
        MissingExtraError: if umap-learn is not installed.
    """
    umap = umap_class()
    if len(vectors) < FEWEST:
        raise ConfigError(
            f"UMAP needs at least {FEWEST} windows; there are {len(vectors)}. Use --projection pca, or more --points."
        )
    found = umap(metric="cosine", n_neighbors=min(15, len(vectors) - 1), random_state=0, n_jobs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such as about disconnected windows
        places: Array = found.fit_transform(vectors)
    return places


def umap_class() -> Any:
    """Return the class of UMAP, or raise a `MissingExtraError`."""
    with needing("--projection umap", "umap"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP
    return UMAP


PROJECTIONS: dict[str, Callable[[Array], Array]] = {"pca": principal_components, "umap": neighbourhoods}


def map_page(
    vectors: Array,
    shown: Sequence[Shown],
    about: str,
    seconds: float,
    progress: Callable[[int, int], None] = lambda done, total: None,
    projection: str = "pca",
) -> str:
    """Return the text of the page.

    Args:
        vectors: embeddings [N, D], D of at least 2.
        shown: the N sounds.
        about: a line below the title.
        seconds: how much of each sound the page holds.
        progress: called with the number of sounds that are done and their total.
        projection: a key of `PROJECTIONS`.
    """
    places = PROJECTIONS[projection](vectors)
    low, high = places.min(axis=0), places.max(axis=0)
    places = (places - low) / np.maximum(high - low, 1e-9)
    folders = [PurePath(one.name).parent.as_posix() for one in shown]
    groups = [name for name, _ in Counter(folders).most_common(GROUPS)]
    points = []
    for number, (one, (x, y), folder) in enumerate(zip(shown, places.tolist(), folders, strict=True)):
        progress(number, len(shown))
        audio, why = sound(one, MAP_RATE, seconds)
        group = groups.index(folder) if folder in groups else -1
        points.append(
            {"name": one.name, "start": one.start, "end": one.end, "x": round(x, 4), "y": round(y, 4), "group": group}
            | {"audio": audio, "why": why}
        )
    others = len(set(folders)) > len(groups)
    return render("map", {"about": about, "points": points, "groups": groups, "others": others})
