"""`dymn index`, `dymn search` and `dymn map`, on real recordings."""

import csv
import dataclasses
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from dymn.audio.reading import read
from dymn.audio.stored import passage
from dymn.cli import app
from dymn.commands.search import parse_query, short
from dymn.errors import AudioError, ConfigError, DataError, MissingExtraError
from dymn.inference import index as indexes
from dymn.inference.discovery import Listed
from dymn.inference.embedding import Embedding
from dymn.inference.journal import Journal
from dymn.plots.map_page import neighbourhoods, principal_components
from dymn.weights import open_checkpoint
from dymn.weights.format import save

pytest.importorskip("usearch", reason="USearch is not installed (dymn[search])")
EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"
MODEL = ("--model", "dymn04_open", "--window", 2, "--quiet")


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Two dogs, speech, and a file that is not one, with their index."""
    folder = tmp_path_factory.mktemp("sounds")
    dog, rate = soundfile.read(EXAMPLES / "dog.ogg")
    for place, part in (("a/first.flac", dog[: 4 * rate]), ("b/second.wav", dog[3 * rate :])):
        (folder / place).parent.mkdir()
        soundfile.write(folder / place, part, rate)
    shutil.copy(EXAMPLES / "speech.ogg", folder / "b" / "speech.ogg")
    (folder / "bad.wav").write_text("this is no audio")
    done = run("index", folder, "-o", folder / ".index", *MODEL)
    assert done.exit_code == 1 and "bad.wav" in done.stderr
    assert re.search(r"\.index: 8 windows of 3 recordings\n$", done.stdout), done.stdout
    return folder


def test_results_agree_in_every_format(made, tmp_path):
    words = ["search", f"{made}/a/first.flac:1-3", "--index", made / ".index", "--top-k", 6]
    document = json.loads(run(*words, "--format", "json").stdout)
    found = document["results"]
    assert len(found) == 6 and document["windows"] == 8 and document["model"] == "dymn04_open"
    assert {Path(one["file"]).name for one in found[:4]} == {"first.flac", "second.wav"}
    assert [one["score"] for one in found] == sorted((one["score"] for one in found), reverse=True)
    rows = list(csv.DictReader(io.StringIO(run(*words, "--format", "csv").stdout)))
    assert [(row["file"], float(row["start"]), float(row["score"])) for row in rows] == [
        (one["file"], one["start"], one["score"]) for one in found
    ]
    table = run(*words).stdout.splitlines()
    assert [line.split()[-1] for line in table] == [one["file"] for one in found]
    assert re.fullmatch(r"\d\.\d{3}  \d+:\d\d\.\d to \d+:\d\d\.\d  .+", table[0]), table[0]
    page = tmp_path / "found.html"
    assert run(*words, "-o", page).exit_code == 0
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page.read_text())[1])
    assert [(one["start"], round(one["score"], 6)) for one in data["found"]] == [
        (one["start"], one["score"]) for one in found
    ]
    assert all(one["audio"].startswith("data:audio/") for one in [data["query"], *data["found"]])


def test_a_window_finds_itself(made):
    path = f"{made}/a/first.flac"
    for words in ([path, "--start", 2, "--end", 4], [f"{path}:2-4"]):
        (best,) = json.loads(run("search", *words, "-i", made / ".index", "-k", 1, "-f", "json").stdout)["results"]
        assert (best["file"], best["start"], best["end"]) == (path, 2.0, 4.0)
        assert best["score"] == pytest.approx(1, abs=2e-3)  # half precision, and its own samples at its edges


def test_only_new_and_changed_recordings_are_computed(made, tmp_path):
    folder, index = tmp_path / "sounds", tmp_path / "index"
    shutil.copytree(made, folder, ignore=shutil.ignore_patterns(".index"))
    (folder / "bad.wav").unlink()
    words = ("index", folder, "-o", index, "--model", "dymn04_open", "--window", 2)
    assert run(*words).exit_code == 0
    before = indexes.open_index(index).table
    shutil.copy(folder / "b" / "speech.ogg", folder / "copy.ogg")
    (folder / "a" / "first.flac").unlink()
    soundfile.write(folder / "b" / "second.wav", np.random.default_rng(0).normal(0, 0.1, 32_000), 32_000)
    done = run(*words)
    assert done.exit_code == 0 and "1 of 3 recordings are already complete" in done.stderr
    now = indexes.open_index(index)
    assert {Path(path).name: len(spans) for path, _, _, spans in now.table.rows()} == {
        "speech.ogg": 4,
        "copy.ogg": 4,
        "second.wav": 1,
    }
    speech = next(first for path, _, first, _ in before.rows() if path.endswith("speech.ogg"))
    assert now.table.recordings[0].endswith("speech.ogg") and now.table.firsts[0] == speech  # it was not added again
    hits = json.loads(run("search", folder / "copy.ogg", "-i", index, "-k", 99, "-f", "json").stdout)["results"]
    assert len(hits) == 9
    scores = {name: [one["score"] for one in hits if one["file"].endswith(name)] for name in ("speech.ogg", "copy.ogg")}
    assert scores["speech.ogg"] == scores["copy.ogg"] and len(scores["copy.ogg"]) == 4
    assert {Path(one["file"]).name for one in hits[:6]} == {"speech.ogg", "copy.ogg"}  # their ends are very short
    assert sorted(path.name for path in index.iterdir()) == [
        "embeddings.journal",
        "graph-2.usearch",
        "index.json",
        "table-2.npz",
    ]


def test_another_model_or_other_windows_are_refused(made, tmp_path):
    shutil.copytree(made / ".index", tmp_path / "index")
    refused = run("index", made, "-o", tmp_path / "index", "--model", "dymn04_open", "--window", 3)
    assert refused.exit_code == 2 and "window was 2.0, now 3.0" in refused.stderr and "--fresh" in refused.stderr
    pointer = tmp_path / "index" / "index.json"
    pointer.write_text(pointer.read_text().replace('"digest": "', '"digest": "0'))
    refused = run("search", EXAMPLES / "dog.ogg", "--index", tmp_path / "index")
    assert refused.exit_code == 2 and "was created with dymn04_open (digest 0" in refused.stderr


def test_indexing_with_another_model_names_both(made, tmp_path):
    shutil.copytree(made / ".index", tmp_path / "index")
    other = tmp_path / "other.safetensors"
    stored = open_checkpoint("dymn04_open")
    save(stored._replace(card=dataclasses.replace(stored.card, name="other")), other)
    words = ("index", made, "-o", tmp_path / "index", "--model", other, *MODEL[2:])
    refused = run(*words)
    assert refused.exit_code == 2 and "created with dymn04_open (digest" in refused.stderr
    assert f"but {other} has the digest" in refused.stderr and "--fresh" in refused.stderr
    assert run(*words, "--fresh").exit_code == 1  # for the file that is no audio
    assert indexes.open_index(tmp_path / "index").model == str(other)


def test_a_silent_query_and_one_beyond_the_end_are_noted(made, tmp_path):
    path, rate = tmp_path / "q.wav", 32_000
    tone = 0.1 * np.sin(np.arange(rate) * 0.1)
    soundfile.write(path, np.concatenate([tone, np.zeros(2 * rate)]), rate)
    silent = tmp_path / "silent.ogg"
    soundfile.write(silent, np.zeros(3 * rate), rate)
    index = ("--index", made / ".index")
    for query, beyond, quiet in (
        (path, False, False),
        (f"{path}:0-2", False, False),
        (f"{path}:1.5-2.5", False, True),
        (f"{path}:0-3", False, False),
        (f"{path}:1.5-9", True, True),
        (silent, False, True),
    ):
        done = run("search", query, *index)
        assert done.exit_code == 0, done.output
        assert ("ends at 3 s; only 1.5 to 3 s is searched for" in done.stderr) == beyond, query
        assert ("is silent from" in done.stderr) == quiet, query
    assert not run("search", f"{path}:1.5-9", *index, "--quiet").stderr


def test_what_is_no_index_is_refused(tmp_path, made):
    missing = run("search", EXAMPLES / "dog.ogg", "--index", tmp_path / "none")
    assert missing.exit_code == 2 and "dymn index" in missing.stderr
    (tmp_path / "mine.txt").write_text("mine")
    assert "not empty" in run("index", made, "-o", tmp_path, *MODEL).stderr
    assert run("index", "-", "-o", tmp_path / "new", *MODEL).exit_code == 2
    assert run("index", tmp_path / "mine.txt", "-o", tmp_path / "new", *MODEL).exit_code == 1
    assert run("map", "--index", made / ".index", "-o", "map.png").exit_code == 2


@pytest.mark.parametrize("name", ["index.json", "graph-1.usearch", "table-1.npz"])
def test_a_damaged_index_is_named_and_made_anew(made, tmp_path, name):
    index = tmp_path / "index"
    shutil.copytree(made / ".index", index)
    content = (index / name).read_bytes()
    (index / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match=f"{re.escape(str(index))} is not an index, or is damaged"):
        indexes.open_index(index)
    assert run("index", made, "-o", index, *MODEL).exit_code == 1  # for bad.wav
    assert len(indexes.open_index(index).table) == 8


def test_a_graph_whose_bytes_changed_is_not_mapped(made, tmp_path):
    index = tmp_path / "index"
    shutil.copytree(made / ".index", index)
    path = index / "graph-1.usearch"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :: 7] = b"\xff" * len(content[len(content) // 2 :: 7])
    path.write_bytes(content)
    found = run("search", EXAMPLES / "dog.ogg", "--index", index)  # the library would end the process
    assert found.exit_code == 1 and "graph-1.usearch was changed" in found.stderr


def test_an_index_without_a_parameter_is_damaged(made, tmp_path):
    index = tmp_path / "index"
    shutil.copytree(made / ".index", index)
    about = json.loads((index / "index.json").read_text())
    del about["parameters"]["window"]
    (index / "index.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match="window"):
        indexes.open_index(index)


def test_a_table_whose_bytes_changed_and_numbers_out_of_bounds_are_refused(made, tmp_path):
    index = tmp_path / "index"
    shutil.copytree(made / ".index", index)
    path = index / "table-1.npz"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"table-1\.npz was changed"):
        indexes.open_index(index)
    about = json.loads((index / "index.json").read_text())
    with np.load(made / ".index" / "table-1.npz") as arrays:
        kept = dict(arrays)
    for name, values in (
        ("counts", kept["counts"] * -1),
        ("firsts", kept["firsts"] * 0),
        ("spans", kept["spans"][:, 0]),
    ):
        np.savez(path, **kept | {name: values})
        changed = about | {"table_digest": hashlib.sha256(path.read_bytes()).hexdigest()}
        (index / "index.json").write_text(json.dumps(changed))
        with pytest.raises(DataError, match="table is incomplete"):
            indexes.open_index(index)
    for size in (0, -1, 2**40):
        (index / "index.json").write_text(json.dumps(about | {"size": size}))
        with pytest.raises(DataError, match=f"embeddings have {size} values"):
            indexes.open_index(index)
    with pytest.raises(DataError, match="no window 99"):
        indexes.open_index(made / ".index").table.window(99)


def test_other_layers_are_indexed_and_queried_alike(made, tmp_path):
    words = ["index", made / "a", "-o", tmp_path / "index", *MODEL]
    assert run(*words, "--layer", "block5,mels").exit_code == 0
    found = indexes.open_index(tmp_path / "index")
    assert found.parameters["layers"] == ["block5", "mels"] and found.size > 128
    (best,) = json.loads(
        run("search", f"{made}/a/first.flac:2-4", "-i", tmp_path / "index", "-k", 1, "-f", "json").stdout
    )["results"]
    assert best["start"] == 2.0 and best["score"] == pytest.approx(1, abs=2e-3)
    refused = run(*words)
    assert refused.exit_code == 2 and "layers" in refused.stderr and "--fresh" in refused.stderr


def test_paths_are_as_short_as_they_can_be_and_pages_are_told_of(made, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    shutil.copytree(made / "b", tmp_path / "sounds")
    monkeypatch.chdir(tmp_path / "work")
    assert run("index", "../sounds", "-o", "i", *MODEL).exit_code == 0
    hits = json.loads(run("search", "../sounds/second.wav", "-i", "i", "-f", "json").stdout)["results"]
    assert {one["file"] for one in hits} == {"../sounds/second.wav", "../sounds/speech.ogg"}
    assert short("/x") == "/x"
    (tmp_path / "sounds" / "speech.ogg").unlink()
    done = run("search", "../sounds/second.wav", "-i", "i", "-o", "found.html")
    assert done.exit_code == 0 and re.search(r"dymn: found.html was written: \d+ of \d+ windows\.\n$", done.stderr)
    assert (
        str(tmp_path / "sounds") not in Path("found.html").read_text()
        and "../sounds/speech.ogg" in Path("found.html").read_text()
    )
    done = run("map", "-i", "i", "-o", "map.html")
    assert done.exit_code == 0 and "dymn: map.html was written: " in done.stderr
    assert str(tmp_path / "sounds") not in Path("map.html").read_text()


def test_what_lies_in_a_folder_that_cannot_be_listed_stays_in_the_index(made, tmp_path, monkeypatch):
    sounds, index = tmp_path / "sounds", tmp_path / "index"
    for folder, name in (("a", "a/first.flac"), ("b", "b/second.wav"), ("b", "b/speech.ogg")):
        (sounds / folder).mkdir(parents=True, exist_ok=True)
        shutil.copy(made / name, sounds / name)
    assert run("index", sounds, "-o", index, *MODEL).exit_code == 0
    before = set(indexes.open_index(index).table.recordings)
    (sounds / "a" / "first.flac").unlink()
    scandir = os.scandir

    def refused(path):
        if Path(path).name == "b":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    shutil.copy(made / "b" / "speech.ogg", sounds / "a" / "new.ogg")
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refused)
        done = run("index", sounds, "-o", index, *MODEL)
    assert done.exit_code == 1 and "b cannot be listed: Permission denied" in done.stderr
    assert "of 3 recordings" in done.stdout
    kept = {*before, str(sounds / "a" / "new.ogg")} - {str(sounds / "a" / "first.flac")}
    assert set(indexes.open_index(index).table.recordings) == kept
    shutil.rmtree(sounds / "b")
    assert run("index", sounds, "-o", index, *MODEL).exit_code == 0
    assert set(indexes.open_index(index).table.recordings) == {str(sounds / "a" / "new.ogg")}


@pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")
def test_a_killed_run_leaves_the_index_of_before_and_needs_no_pytorch(made, tmp_path):
    index, words = tmp_path / "index", ["index", str(made / "b"), "-o", str(tmp_path / "index"), *map(str, MODEL)]
    code = (
        "import os, sys; sys.modules['torch'] = None\n"
        "import dymn.inference.index as index, numpy; save = numpy.savez\n"
        "def savez(*a, **k): save(*a, **k); os.environ.get('END') and os.kill(os.getpid(), 9)\n"
        "numpy.savez = savez\n"
        "from dymn.cli import app; app(sys.argv[1:])"
    )

    def process(**end):
        return subprocess.run(
            [sys.executable, "-c", code, *words], env=os.environ | end, capture_output=True, text=True
        )

    assert process(END="1").returncode == -signal.SIGKILL
    with pytest.raises(ConfigError, match="There is no index"):
        indexes.open_index(index)
    done = process()
    assert done.returncode == 0 and "6 windows" in done.stdout, done.stderr
    words[1] = str(made)
    assert process(END="1").returncode == -signal.SIGKILL
    assert len(indexes.open_index(index).table) == 6
    assert process().returncode == 1
    assert len(indexes.open_index(index).table) == 8


def filled(journal, folder, vectors):
    """Put recordings with these vectors, one a window, into a journal."""
    paths = [folder / f"{name}.wav" for name in vectors]
    for path in paths:
        path.touch()
    journal.find(Listed(0, path) for path in paths)
    kind = indexes.stored(4)
    for task in list(journal.to_do()):
        rows = vectors[Path(task.name).stem]
        spans = np.stack([np.arange(len(rows)), np.arange(len(rows)) + 1.0], axis=1)
        journal.put(task, float(len(rows)), kind.pack(Embedding("", len(rows), windows=rows, spans=spans)), None)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 5), min_size=1, max_size=6))
def test_searches_agree_with_a_comparison_of_all_vectors(tmp_path_factory, seed, counts):
    folder, rng = tmp_path_factory.mktemp("index"), np.random.default_rng(seed)
    vectors = {f"r{i}": rng.normal(size=(count, 4)).astype(np.float32) for i, count in enumerate(counts)}
    about = {
        "model": "m",
        "digest": "d",
        "parameters": {"window": 5.0, "hop": 5.0, "fill": "repeat", "layers": ["last"]},
    }
    for kept in (list(vectors)[: len(vectors) // 2 + 1], list(vectors), list(vectors)[-1:]):
        now = {name: vectors[name] for name in kept}
        with Journal(folder / indexes.EMBEDDINGS, {}) as journal:
            filled(journal, folder, now)
            assert len(indexes.update(journal, folder, about, 4)) == sum(map(len, now.values()))
        found = indexes.open_index(folder)
        query = rng.normal(size=4).astype(np.float32)
        scores = {
            (name, float(i)): float(indexes.unit(row) @ indexes.unit(query))
            for name, rows in now.items()
            for i, row in enumerate(rows)
        }
        hits = found.search(query, 3)
        assert len(hits) == min(3, len(scores))
        np.testing.assert_allclose([hit.score for hit in hits], sorted(scores.values())[::-1][:3], atol=3e-3)
        for hit in hits:
            assert hit.score == pytest.approx(scores[Path(hit.recording).stem, hit.start], abs=3e-3)


def test_an_index_that_is_replaced_while_it_is_opened_is_the_new_one(tmp_path, monkeypatch):
    about = {
        "model": "m",
        "digest": "d",
        "parameters": {"window": 5.0, "hop": 5.0, "fill": "repeat", "layers": ["last"]},
    }

    def write(names):
        with Journal(tmp_path / indexes.EMBEDDINGS, {}) as journal:
            filled(journal, tmp_path, {name: np.ones((2, 4), np.float32) for name in names})
            indexes.update(journal, tmp_path, about, 4)

    digest, opened = indexes._digest, []

    def replaced(path):
        opened.append(path.name)
        if len(opened) == 1:  # before the first file is read, it is replaced
            with monkeypatch.context() as patch:
                patch.setattr(indexes, "_digest", digest)
                write("abc")
        return digest(path)

    write("ab")
    monkeypatch.setattr(indexes, "_digest", replaced)
    assert len(indexes.open_index(tmp_path).table) == 6
    assert opened == ["graph-1.usearch", "graph-2.usearch", "table-2.npz"]


def test_an_index_of_nothing_is_an_error(tmp_path):
    with Journal(tmp_path / indexes.EMBEDDINGS, {}) as journal, pytest.raises(AudioError, match="nothing to index"):
        indexes.update(journal, tmp_path, {"model": "", "digest": "", "parameters": {}}, 4)


def test_the_extra_is_named_where_usearch_is_missing(monkeypatch, made):
    monkeypatch.setitem(sys.modules, "usearch.index", None)
    with pytest.raises(MissingExtraError, match="search"):
        indexes.open_index(made / ".index")
    refused = run("index", made, "-o", made / "other", *MODEL)
    assert refused.exit_code == 1 and "An index needs an optional dependency" in refused.stderr


def test_other_libraries_can_be_loaded_after_usearch():
    """Of USearch 2.26, the import of ONNX Runtime ended the process."""
    pytest.importorskip("onnxruntime")
    subprocess.run([sys.executable, "-c", "import usearch.index, onnxruntime, torch"], check=True)


def test_queries(tmp_path):
    odd = tmp_path / "odd:1-2"
    odd.touch()
    assert parse_query("a.wav", None, None) == ("a.wav", 0.0, None)
    assert parse_query("a:b.wav:12.5-15", None, None) == ("a:b.wav", 12.5, 15.0)
    assert parse_query("a:2.wav:1:07.25-1:00:10", None, None) == ("a:2.wav", 67.25, 3610.0)
    assert parse_query("a.wav", 3.0, None) == ("a.wav", 3.0, None)
    assert parse_query(str(odd), None, None) == (str(odd), 0.0, None)
    for query, start, end in (("a.wav:2-2", None, None), ("a.wav:1-2", 1.0, None), ("a.wav", 3.0, 1.0)):
        with pytest.raises(ConfigError):
            parse_query(query, start, end)


def test_a_stretch_is_that_part_of_the_recording(tmp_path):
    sound = np.random.default_rng(0).normal(0, 0.1, (64_000, 2)).astype(np.float32)
    for ending, subtype in (("wav", "FLOAT"), ("wav", "PCM_16"), ("flac", "PCM_24")):
        path = tmp_path / f"{subtype}.{ending}"
        soundfile.write(path, sound, 32_000, subtype)
        np.testing.assert_allclose(passage(path, 0.25, 1.5, 32_000), read(path)[8000:48_000], atol=1e-7)
        assert len(passage(path, 1.5, 99, 16_000)) == 8000
    with pytest.raises(AudioError, match="ends before 2 s"):
        passage(path, 2, 3, 32_000)


def test_principal_components_keep_the_most_variance():
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=(200, 5)) * [1, 9, 2, 5, 3] + 7).astype(np.float32)
    places = principal_components(vectors)
    centred = vectors - vectors.mean(axis=0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(places), np.abs(centred @ axes[:2].T), atol=1e-3)
    np.testing.assert_allclose(places.std(axis=0) * np.sqrt(200), sizes[:2], rtol=1e-4)


def test_umap_keeps_groups_together():
    pytest.importorskip("umap.umap_")
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3, 16))
    vectors = np.repeat(centres, 20, axis=0) + rng.normal(scale=0.05, size=(60, 16))
    places = neighbourhoods(vectors.astype(np.float32))
    assert places.shape == (60, 2) and np.isfinite(places).all()
    np.testing.assert_array_equal(places, neighbourhoods(vectors.astype(np.float32)))
    middles = places.reshape(3, 20, 2).mean(axis=1)
    nearest = np.linalg.norm(places[:, None] - middles[None], axis=2).argmin(axis=1)
    assert nearest.tolist() == [0] * 20 + [1] * 20 + [2] * 20


def test_the_projection_of_a_map_is_chosen(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)

    class Stand(ModuleType):
        class UMAP:
            def __init__(self, **settings):
                Stand.settings = settings

            def fit_transform(self, vectors):
                return np.stack([np.arange(len(vectors)), -np.arange(len(vectors))], axis=1).astype(np.float32)

    monkeypatch.setitem(sys.modules, "umap", Stand("umap"))
    page, words = tmp_path / "map.html", ("map", "--index", made / ".index", "--projection", "umap", "-q")
    assert run(*words, "-o", page).exit_code == 0
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page.read_text())[1])
    assert [(point["x"], point["y"]) for point in data["points"]] == [
        (pytest.approx(i / 7, abs=1e-4), pytest.approx(1 - i / 7, abs=1e-4)) for i in range(8)
    ]
    assert (Stand.settings["n_neighbors"], Stand.settings["metric"]) == (7, "cosine")
    done = run(*words, "-o", tmp_path / "few.html", "--points", 4)
    assert done.exit_code == 2 and "UMAP needs at least 5 windows; there are 4" in done.stderr
    monkeypatch.setitem(sys.modules, "umap", None)
    done = run(*words, "-o", tmp_path / "none.html")
    assert done.exit_code == 1 and "dymn[umap]" in done.stderr and not (tmp_path / "none.html").exists()


def test_a_map_has_a_point_and_a_sound_for_each_window(made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    page = tmp_path / "map.html"
    assert run("map", "--index", made / ".index", "-o", page, "-q").exit_code == 0
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', page.read_text())[1])
    assert len(data["points"]) == 8 and data["groups"] == ["b", "a"] and not data["others"]
    assert {0, 1} <= {point["x"] for point in data["points"]}
    assert all(point["audio"].startswith("data:audio/") for point in data["points"])
    assert run("map", "--index", made / ".index", "-o", page, "--points", 4, "-q").exit_code == 0
    assert "4 of 8 windows" in page.read_text()
