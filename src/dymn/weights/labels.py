"""Names of classes: AudioSet's 527, and numbered ones where nothing is known."""

from __future__ import annotations

import csv
import functools
from importlib import resources


@functools.cache
def audioset_labels() -> tuple[str, ...]:
    """Return the display names of AudioSet's 527 classes, in logit order (ontology by Google, CC BY 4.0)."""
    return _audioset_column("display_name")


@functools.cache
def audioset_mids() -> tuple[str, ...]:
    """Return the machine ids of AudioSet's 527 classes, such as "/m/09x0r", in logit order."""
    return _audioset_column("mid")


def _audioset_column(name: str) -> tuple[str, ...]:
    text = (resources.files("dymn.weights") / "audioset_labels.csv").read_text(encoding="utf-8")
    return tuple(row[name] for row in csv.DictReader(text.splitlines()))


def labels_for(num_classes: int) -> tuple[str, ...]:
    """Return the names of the classes of a network that comes without them.

    They are AudioSet's if there are 527, else class_0, class_1 ...
    """
    return audioset_labels() if num_classes == len(audioset_labels()) else numbered_labels(num_classes)


def numbered_labels(num_classes: int) -> tuple[str, ...]:
    """Return class_0, class_1 ..."""
    return tuple(f"class_{i}" for i in range(num_classes))
