"""Labelled clips: from folders, tables, annotations of recordings, and answers of `dymn review`."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from dymn.audio.annotations import Annotation, read_annotated
from dymn.audio.listing import find
from dymn.audio.sources import display
from dymn.data.catalog import NEGATIVES, Catalog
from dymn.data.detect import detect
from dymn.data.manifest import read_csv
from dymn.data.readers import SPLIT_NAMES, read_esc10, read_esc50, read_folder, table
from dymn.data.stores import FileStore, Store
from dymn.errors import AudioError, DataError
from dymn.system.files import digest_of, open_regular

READERS = {"folder": read_folder, "esc10": read_esc10, "esc50": read_esc50}
ANSWERS = {"yes": True, "no": False}
ANSWER_COLUMNS = ("path", "start", "end", "label", "heard")


class LabelledClip(NamedTuple):
    """A passage of a recording, and what is known about its labels.

    Attributes:
        path: path of the recording.
        group: clips of one recording or fold have the same group, and are never divided between training and
            validation.
        heard: labels of the sounds that it contains.
        absent: labels of the sounds that it does not contain; None means all others.
        start: start in seconds.
        end: end in seconds, or infinity.
    """

    path: Path
    group: str
    heard: frozenset[str]
    absent: frozenset[str] | None = None
    start: float = 0.0
    end: float = math.inf


class AnnotatedRecording(NamedTuple):
    """A completely annotated recording: passages without an annotation contain none of the classes."""

    path: Path
    group: str
    annotations: Sequence[Annotation]


class Labelled(NamedTuple):
    """Labelled recordings.

    Attributes:
        labels: the classes; those of `NEGATIVES` only if a model has them.
        clips: labelled clips.
        tracks: annotated recordings.
        test: number of test clips, which are left out.
        known: one clip of each recording, by digest; clips that are added later get its group.
    """

    labels: tuple[str, ...]
    clips: Sequence[LabelledClip]
    tracks: Sequence[AnnotatedRecording] = ()
    test: int = 0
    known: Mapping[str, LabelledClip] = MappingProxyType({})

    def adding(self, more: Sequence[LabelledClip]) -> Labelled:
        """Return these clips and further ones; clips of known recordings get the group of the recording.

        Raises:
            DataError: if a clip without any class is identical to one with a class.
        """
        for clip in more:
            first = self.known.get(clip.group, clip)
            heard = first.heard.intersection(self.labels)
            if clip.absent is None and not clip.heard and heard and (clip.start, clip.end) == (0.0, math.inf):
                raise DataError(
                    f"{display(clip.path)} is background, and {display(first.path)} ({_names(heard)}) is the "
                    "same recording. Remove one of them."
                )
        placed = [one._replace(group=self.known.get(one.group, one).group) for one in more]
        return self._replace(clips=[*self.clips, *placed])


def read_labelled(path: str | Path, *, separator: str | None = None, known: Sequence[str] = ()) -> Labelled:
    """Read the labelled recordings at `path`.

    Args:
        path: a folder with one folder of clips for each class, a table (see `dymn.data.manifest.read_csv`), selection
            tables of Raven or label tracks of Audacity, or ESC-50's layout.
        separator: separator of labels in a row of a table.
        known: labels that are classes even if they are in `NEGATIVES`, such as those of the model to calibrate.

    Raises:
        DataError: if there is no dataset or no class, a class has no clip, or a recording is in two classes.
    """
    kind, path = detect(path)
    if kind == "annotations":
        found = _tracks(read_annotated(path))
    elif kind == "csv":
        found = _clips(*read_csv(path, separator=separator))
    elif kind in READERS:
        if kind == "folder":
            _check_folders(path)
        found = _clips(*READERS[kind](path))
    else:
        raise DataError(
            f"{path} is a dataset of the kind {kind}; `dymn fit` reads folders of clips, tables (.csv, .tsv) and "
            "annotations (.txt). For other datasets, use `dymn train`."
        )
    labels = {label for clip in found.clips for label in clip.heard}
    labels |= {annotation.label for track in found.tracks for annotation in track.annotations}
    classes = tuple(sorted(label for label in labels if label in known or label.lower() not in NEGATIVES))
    if not classes:
        raise DataError(
            f"{path} has no class: the labels {', '.join(NEGATIVES)} mean that a clip has none. Add clips of at least "
            "one class."
        )
    return found._replace(labels=classes)


def read_answers(path: Path, labels: Sequence[str]) -> list[LabelledClip]:
    """Read a table of answers from the page of `dymn review`: a clip, a label, and whether it is heard.

    The other labels of such a clip are unknown. A clip whose label is in `NEGATIVES`, and not a class, has no label.

    Raises:
        DataError: if a column is missing, or a row is not valid.
    """
    rows = table(path)
    missing = [name for name in ANSWER_COLUMNS if name not in rows[0]]
    if missing:
        raise DataError(
            f"{path} needs the columns {', '.join(ANSWER_COLUMNS)}; {', '.join(missing)} is missing. The pages of "
            "`dymn review` write them."
        )
    found: dict[tuple[Path, float, float], dict[str, bool]] = {}
    for line, row in enumerate(rows, start=2):
        label, answer = row["label"].strip(), row["heard"].strip().lower()
        if answer not in ANSWERS:
            raise DataError(f"{path}, row {line}: heard is {row['heard']!r:.40}; allowed: {', '.join(ANSWERS)}.")
        if label not in labels and label.lower() not in NEGATIVES:
            raise DataError(f"{path}, row {line}: {label!r:.80} is not one of the classes: {', '.join(labels)}.")
        start, end = (_seconds(row[name], default, path, line) for name, default in (("start", 0.0), ("end", math.inf)))
        if end <= start:
            raise DataError(
                f"{path}, row {line}: the part from {start:g} to {end:g} s is empty. Its end must be after its start."
            )
        place = path.parent / row["path"].strip()  # an absolute path stays as it is
        found.setdefault((place, start, end), {})[label] = ANSWERS[answer]
    clips = []
    for (place, start, end), answers in found.items():
        heard = frozenset(label for label, yes in answers.items() if yes)
        absent = None if heard.difference(labels) else frozenset(answers) - heard
        clips.append(LabelledClip(place, _digest(place), heard, absent, start, end))
    return clips


def read_background(path: Path) -> list[LabelledClip]:
    """Return the recordings below a folder, or one recording, as clips without any of the classes.

    Raises:
        DataError: if there is none.
    """
    try:
        return [LabelledClip(file, _digest(file), frozenset()) for file in find(path)]
    except AudioError as error:
        raise DataError(str(error)) from error


def _check_folders(root: Path) -> None:
    """Reject a folder of a class that holds no recording: a class that is missing unnoticed is worse than an error."""
    folders = [path for path in sorted(root.iterdir()) if path.is_dir() and not path.name.startswith(".")]
    if folders and all(path.name.lower() in SPLIT_NAMES for path in folders):
        folders = [below for path in folders for below in sorted(path.iterdir()) if below.is_dir()]
    for folder in folders:
        try:
            find(folder)
        except AudioError as error:
            raise DataError(
                f"The folder {display(folder)} contains no recording for the class {folder.name!r}. Add clips, or "
                "remove the folder."
            ) from error


def _clips(catalog: Catalog, store: Store) -> Labelled:
    assert isinstance(store, FileStore)  # all of these readers give single files
    targets = catalog.target_rows(slice(None))
    clips, test, known = list[LabelledClip](), 0, dict[str, LabelledClip]()
    seen = dict[tuple[str, float, float], LabelledClip]()
    for i, path in enumerate(store.paths):
        if catalog.splits and catalog.splits[i] == "test":
            test += 1
            continue
        heard = frozenset(catalog.labels[c] for c in np.flatnonzero(targets[i] > 0.5))
        start, end = (0.0, math.inf) if catalog.spans is None else map(float, catalog.spans[i])
        digest = _digest(path)
        clip = LabelledClip(path, f"fold {catalog.folds[i]}" if catalog.folds else digest, heard, None, start, end)
        first = seen.setdefault((digest, start, end), clip)
        if first.heard != heard:
            raise DataError(
                f"{display(first.path)} ({_names(first.heard)}) and {display(path)} ({_names(heard)}) are the same "
                "recording. Keep one of them, or list it once with both labels in a table (.csv)."
            )
        known.setdefault(digest, clip)
        clips.append(clip)
    return Labelled((), clips, test=test, known=known)


def _tracks(annotated: Mapping[Path, Sequence[Annotation]]) -> Labelled:
    tracks = [AnnotatedRecording(path, _digest(path), found) for path, found in sorted(annotated.items())]
    known = {
        track.group: LabelledClip(track.path, track.group, frozenset(one.label for one in track.annotations))
        for track in tracks
    }
    return Labelled((), (), tracks, known=known)


def _names(labels: frozenset[str]) -> str:
    return ", ".join(sorted(labels)) or "no label"


def _digest(path: Path) -> str:
    """Return the SHA-256 of a file; of one that cannot be read, that of its name: reading it says what is wrong."""
    try:
        with open_regular(path) as file:
            return digest_of(file)
    except OSError:
        return hashlib.sha256(str(path).encode("utf-8", "replace")).hexdigest()


def _seconds(text: str, default: float, path: Path, line: int) -> float:
    try:
        value = float(text) if text.strip() else default
    except ValueError:
        value = math.nan
    if not value >= 0:
        raise DataError(f"{path}, row {line}: {text!r:.40} is not a time in seconds of at least 0.")
    return value


def check_counts(recordings: Mapping[str, int]) -> None:
    """Reject classes with fewer than two recordings, which cannot be both trained and tested.

    Raises:
        DataError: naming them.
    """
    few = {label: count for label, count in recordings.items() if count < 2}
    if few:
        label, count = next(iter(few.items()))
        others = f" The same applies to {', '.join(list(few)[1:4])}." if len(few) > 1 else ""
        raise DataError(
            f"The class {label!r} has {count} recording{'' if count == 1 else 's'}; at least 2 are needed, one for "
            "training and one for testing, and 10 or more are recommended. Add or annotate another recording, split a "
            "long one into several files so that different ones are used for training and testing, or leave the class "
            f"out.{others}"
        )


def recordings_of(labelled: Labelled) -> dict[str, int]:
    """Return in how many recordings each class is heard."""
    groups: dict[str, set[str]] = {label: set() for label in labelled.labels}
    heard = [(clip.group, clip.heard) for clip in labelled.clips]
    heard += [(track.group, frozenset(one.label for one in track.annotations)) for track in labelled.tracks]
    for group, labels in heard:
        for label in labels & groups.keys():
            groups[label].add(group)
    return {label: len(found) for label, found in groups.items()}
