"""Datasets as they are published, with one of their files edited; tables of teachers; journals of long runs."""

from __future__ import annotations

import functools
import hashlib
import io
import json
import pickle
import sqlite3
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

import layouts
from dymn.commands.convert import read_labels
from dymn.data import PackSettings, TeacherTable, open_source, pack, task_of
from dymn.data.packed import COLUMNS_FILE, INDEX_FILE
from dymn.data.pickles import read_index, read_npz
from dymn.data.teacher import write_table
from dymn.inference.discovery import Discovery
from dymn.inference.formats.origin import Origin
from dymn.inference.formats.tags import TAGS
from dymn.inference.formats.writers import csv_rows, json_lines
from dymn.inference.journal import Journal, journal_path
from dymn.inference.runs import results, tags
from fuzz import inputs


def write_hdf5(root: Path) -> None:
    target = np.packbits(np.eye(2, 527, dtype=np.uint8), axis=1)
    root.mkdir(parents=True, exist_ok=True)
    layouts.write_hdf5(root / "eval_segments_mp3.hdf", ["Yaaaaaaaaaaa.mp3", "Ybbbbbbbbbbb.mp3"], target)


def write_manifest(root: Path) -> None:
    rows = [["path", "labels", "split", "fold"], ["a.wav", "Dog;Rain", "train", 1], ["b/c.wav", "Rain", "test", 2]]
    layouts.write_table(root / "list.csv", rows)
    for row in rows[1:]:
        layouts.write_audio(root / str(row[0]))


def write_packed(root: Path) -> None:
    layouts.write_esc50(root / "data")
    task = {"loss": "ce", "metric": "accuracy", "seconds": 5.0, "whole": False}
    pack(open_source("esc50", root / "data"), root / "out", PackSettings(clips=4), task=task)


LAYOUTS: dict[str, tuple[Callable[[Path], None], str, tuple[str, ...]]] = {
    "csv": (write_manifest, "list.csv", ("list.csv", "a.wav")),
    "esc50": (layouts.write_esc50, "", ("meta/esc50.csv",)),
    "fsd50k": (layouts.write_fsd50k, "", ("FSD50K.ground_truth/dev.csv", "FSD50K.ground_truth/vocabulary.csv")),
    "openmic": (layouts.write_openmic, "", ("openmic-2018.npz", "class-map.json", "partitions/split01_train.csv")),
    "tau": (layouts.write_tau, "", ("meta.csv", "evaluation_setup/fold1_train.csv")),
    "shards": (layouts.write_corpus, "", ("shards/kd-0000.tar", "index.csv")),
    "packed": (write_packed, "out", ("out/index.json", "out/clips.npz")),
    "audioset_hdf5": (write_hdf5, "", ("eval_segments_mp3.hdf",)),
}
"""How a dataset is written, where it is opened below its folder, and which of its files are edited."""
CELLS = (
    *inputs.HOSTILE_TEXTS[:-6],
    "a.wav",
    "../a.wav",
    "Dog",
    "train",
    "-1",
    "99999999999999999999",
    "1e9",
    '"',
    "\r",
    "\n",
    ",",
    ";",
    "\ufeff",
)


@functools.cache
def files(kind: str) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        LAYOUTS[kind][0](Path(folder))
        return {name: (Path(folder) / name).read_bytes() for name in LAYOUTS[kind][2]}


@st.composite
def _table(draw: Any, content: bytes) -> bytes:
    """Draw a table in which some cells hold something else."""
    text = content.decode()
    sign = "\t" if "\t" in text else ","
    rows = [line.split(sign) for line in text.splitlines()]
    for _ in range(draw(st.integers(1, 3))):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(st.sampled_from(CELLS))
    return "\n".join(sign.join(row) for row in rows).encode("utf-8", "surrogatepass")


@st.composite
def _columns(draw: Any, content: bytes) -> bytes:
    """Draw columns of which one is edited, in an archive that is whole."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(file, "w") as after:
        changed = draw(st.sampled_from(before.namelist()))
        for name in before.namelist():
            column = before.read(name)
            after.writestr(name, inputs.edited(column, draw(inputs.edits)) if name == changed else column)
    return file.getvalue()


@st.composite
def _headers(draw: Any, content: bytes) -> bytes:
    """Draw an archive that is whole, in which a column has another header."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as after:
        changed = draw(st.sampled_from(before.namelist()))
        for name in before.namelist():
            after.writestr(name, draw(inputs.npy()) if name == changed else before.read(name))
    return file.getvalue()


def dataset_cases() -> st.SearchStrategy[tuple[str, str, bytes]]:
    found: list[st.SearchStrategy[tuple[str, str, bytes]]] = []
    for kind in LAYOUTS:
        for name, content in files(kind).items():
            mend = inputs.mended_tar if name.endswith(".tar") else None
            drawn = inputs.variants({name: content}, mend).map(lambda case: case[1])
            if name.endswith(".csv"):
                drawn = st.one_of(drawn, _table(content))
            elif name.endswith(".json"):
                drawn = st.one_of(
                    drawn,
                    inputs.changed(json.loads(content)).map(inputs.dumped),
                    st.just(inputs.deep(100_000).encode()),
                )
            elif name.endswith(".npz"):
                drawn = st.one_of(drawn, _columns(content), _headers(content))
            elif name.endswith(".tar"):
                drawn = st.one_of(
                    drawn,
                    inputs.tars(),
                    inputs.tars().map(lambda headers, content=content: headers.rstrip(b"\0") + content),
                )
            found.append(st.tuples(st.just(kind), st.just(name), drawn))
    return st.one_of(found)


def open_dataset(case: tuple[str, str, bytes], folder: Path) -> bool:
    kind, name, content = case
    write, start, _ = LAYOUTS[kind]
    root = folder / kind
    if not root.exists():
        write(root)
    edited = {root / name: content}
    if name.endswith(COLUMNS_FILE):  # a stranger's index says what its columns are
        index = root / start / INDEX_FILE
        values = json.loads(index.read_bytes())
        values["columns"]["sha256"] = hashlib.sha256(content).hexdigest()
        edited[index] = json.dumps(values).encode()
    kept = {path: path.read_bytes() for path in edited}
    for path, changed in edited.items():
        path.write_bytes(changed)
    try:
        task_of(kind, root / start)
        source = open_source(kind, root / start)
        for i in range(min(2, len(source))):
            source.read(i)
        return True
    finally:
        for path, content in kept.items():
            path.write_bytes(content)


def pickle_cases() -> st.SearchStrategy[tuple[str, bytes]]:
    index = {f"protocol {protocol}": pickle.dumps({"a": 0, "b": 1}, protocol) for protocol in range(5)}
    array = io.BytesIO()
    np.lib.format.write_array(array, np.array(["a", "bc"], object))
    content = array.getvalue()
    at = content.index(b"\n") + 1

    def packed(content: bytes) -> tuple[str, bytes]:
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("names.npy", content)
        return "npz", file.getvalue()

    return st.one_of(
        inputs.variants(index).map(lambda case: ("pkl", case[1])),
        inputs.pickles().map(lambda pickled: ("pkl", pickled)),
        inputs.variants({"array": content}).map(lambda case: packed(case[1])),
        inputs.pickles().map(lambda pickled: packed(content[:at] + pickled)),
        inputs.npy().map(packed),
    )


def load_pickle(case: tuple[str, bytes], folder: Path) -> bool:
    path = folder / f"case.{case[0]}"
    path.write_bytes(case[1])
    read_index(path) if case[0] == "pkl" else read_npz(path, ("names",))
    return True


def teacher_cases() -> st.SearchStrategy[tuple[str, bytes]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "table.safetensors"
        write_table(path, ["a", "b"], ["Dog", "Rain"], np.ones((2, 2), np.float32), np.zeros(2, np.int64))
        content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = inputs.changed(json.loads(content[8 : 8 + size]))

    def packed(value: Any) -> bytes:
        text = inputs.dumped(value)
        return len(text).to_bytes(8, "little") + text + content[8 + size :]

    labels = st.lists(st.sampled_from(inputs.HOSTILE_TEXTS), max_size=4).map(
        lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass")
    )
    tables = st.one_of(inputs.variants({"table": content}).map(lambda case: case[1]), header.map(packed))
    published = st.one_of(inputs.npy(), inputs.npy(np.zeros((2, 2), np.float16).tobytes()))
    return st.one_of(
        tables.map(lambda case: ("safetensors", case)),
        labels.map(lambda case: ("txt", case)),
        published.map(lambda case: ("npy", case)),
    )


def open_table(case: tuple[str, bytes], folder: Path) -> bool:
    path = folder / f"case.{case[0]}"
    path.write_bytes(case[1])
    if path.suffix == ".txt":
        read_labels(path)
    elif path.suffix == ".npy":
        (folder / "index.csv").write_text("key,row\na,0\nb,1\n")
        TeacherTable.published(path, folder / "index.csv", ("Dog", "Rain")).logits.sum()
    else:
        TeacherTable.open(path)
    return True


SETTINGS = {"model": "tiny"}
ORIGIN = Origin("1", "tiny", "", {}, per_window=True)
RESULT = [[["Dog", 0.5]], [[0.0, 1.0, [["Dog", 0.5]]]], [[], False, None, None]]
NASTY = (
    "CREATE TRIGGER t AFTER DELETE ON listed BEGIN UPDATE facts SET value = 'x'; END",
    "CREATE VIEW v AS SELECT * FROM facts",
)


@functools.cache
def recordings() -> dict[str, bytes]:
    return {name: inputs.encoded("WAV", seconds=seconds) for name, seconds in (("a.wav", 0.1), ("b.wav", 0.2))}


def journal_file(folder: Path, change: Callable[[sqlite3.Connection], None] = lambda database: None) -> None:
    """Write the journal of a run in which both recordings of a folder are done."""
    output = folder / "out.csv"
    journal_path(output).unlink(missing_ok=True)
    with Journal(output, SETTINGS) as journal:
        journal.find(Discovery([str(folder / "clips")]))
        for task in journal.to_do():
            journal.put(task, 0.1, json.dumps(RESULT).encode(), None)
    database = sqlite3.connect(journal_path(output))
    try:
        with database:
            change(database)
    except sqlite3.Error:
        pass
    database.close()


def journal_cases() -> st.SearchStrategy[tuple[str, Any]]:
    value = st.one_of(
        st.sampled_from(
            (
                None,
                1,
                -(2**63),
                1e308,
                float("inf"),
                "",
                "x",
                "\x1b[2J",
                b"",
                b"\xff",
                b"[]",
                b"null",
                b'{"a": NaN}',
                "[" * 2000,
            )
        ),
        inputs.changed(RESULT).map(inputs.dumped),
        inputs.values.map(json.dumps).map(
            lambda text: text.encode("utf-8", "surrogatepass").decode("utf-8", "replace")
        ),
    )
    column = st.sampled_from(
        ("facts.value", "done.result", "done.seconds", "done.error", "listed.name", "done.size", "facts.name")
    )
    return st.one_of(
        st.tuples(st.just("cell"), st.tuples(column, value)),
        st.tuples(st.just("bytes"), inputs.edits),
        st.tuples(
            st.just("statement"), st.sampled_from((*NASTY, "DROP TABLE done", "ALTER TABLE done DROP COLUMN error"))
        ),
    )


def open_journal(case: tuple[str, Any], folder: Path) -> bool:
    kind, value = case
    for name, content in recordings().items():
        (folder / "clips").mkdir(exist_ok=True)
        if not (folder / "clips" / name).exists():
            (folder / "clips" / name).write_bytes(content)

    def change(database: sqlite3.Connection) -> None:
        if kind == "cell":
            table, column = value[0].split(".")
            database.execute(f"UPDATE {table} SET {column} = ?", (value[1],))
        elif kind == "statement":
            database.execute(value)

    journal_file(folder, change)
    path = journal_path(folder / "out.csv")
    if kind == "bytes":
        path.write_bytes(inputs.edited(path.read_bytes(), value))
    packed = tags(windows=True)
    with Journal(folder / "out.csv", SETTINGS) as journal:
        journal.find(Discovery([str(folder / "clips")]))
        for task in journal.to_do():
            journal.put(task, 0.1, json.dumps(RESULT).encode(), None)
        found = list(results(journal, packed))
    "".join(csv_rows(found, TAGS, ORIGIN)), "".join(json_lines(found, TAGS, ORIGIN))
    return True


WAYS: dict[str, tuple[Callable[[], st.SearchStrategy[Any]], Callable[[Any, Path], bool]]] = {
    "datasets": (dataset_cases, open_dataset),
    "pickles": (pickle_cases, load_pickle),
    "tables": (teacher_cases, open_table),
    "journal": (journal_cases, open_journal),
}
"""What draws cases, and what takes them, by the name of the way in."""
