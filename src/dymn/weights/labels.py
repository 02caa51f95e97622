"""Names of classes: AudioSet's 527, AudioSet Strong's 447, and numbers for unknown classes."""

from __future__ import annotations

import csv
import functools
from importlib import resources


@functools.cache
def audioset_labels() -> tuple[str, ...]:
    """Return the display names of AudioSet's 527 classes, in logit order (ontology by Google, CC BY 4.0)."""
    return _column("audioset_labels.csv", "display_name")


@functools.cache
def audioset_mids() -> tuple[str, ...]:
    """Return the machine ids of AudioSet's 527 classes, such as "/m/09x0r", in logit order."""
    return _column("audioset_labels.csv", "mid")


@functools.cache
def strong_labels() -> tuple[str, ...]:
    """Return the 447 classes of AudioSet Strong's training set, in alphabetical order like EfficientSED's heads."""
    return _column("audioset_strong_labels.csv", "display_name")


def _column(file: str, name: str) -> tuple[str, ...]:
    text = (resources.files("dymn.weights") / file).read_text(encoding="utf-8")
    return tuple(row[name] for row in csv.DictReader(text.splitlines()))


def labels_for(num_classes: int, framewise: bool = False) -> tuple[str, ...]:
    """Return AudioSet's labels for 527 classes, those of AudioSet Strong for 447 of a frame-wise network.

    For other numbers, they are class_0, class_1 ...
    """
    if num_classes == len(audioset_labels()):
        return audioset_labels()
    return strong_labels() if framewise and num_classes == len(strong_labels()) else numbered_labels(num_classes)


def numbered_labels(num_classes: int) -> tuple[str, ...]:
    """Return class_0, class_1 ..."""
    return tuple(f"class_{i}" for i in range(num_classes))
