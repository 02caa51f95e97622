"""Recordings to vectors, from Python and from the command line, on a tiny network with random weights."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import dymn
from dymn import Embedder, Tagger, create_model
from dymn.cli import app
from dymn.config import ModelCard
from dymn.errors import AudioError, ConfigError
from dymn.inference.embedding import EmbedSettings
from dymn.models import pretrained
from dymn.runtime.accelerate import accelerate

RATE = 32_000


@pytest.fixture(scope="module")
def network():
    network = create_model("mn01", num_classes=2, generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="tiny", labels=("a", "b"))
    return network


@pytest.fixture(scope="module")
def embedder(network):
    return Embedder(network, "mels,last")


@pytest.fixture(scope="module")
def model(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    pretrained.save(network, path)
    return path


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Recordings of a half, one and two and a half seconds, and a file that is none."""
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for name, seconds in (("a", 0.5), ("b", 1), ("c", 2.5)):
        soundfile.write(
            folder / f"{name}.wav",
            random.normal(0, 0.1, round(RATE * seconds)).astype(np.float32),
            RATE,
            subtype="FLOAT",
        )
    (folder / "bad.wav").write_text("this is no audio")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, ["embed", *map(str, arguments)])


def noise(seconds):
    return np.random.default_rng(1).normal(0, 0.1, round(RATE * seconds)).astype(np.float32)


def test_a_recording_is_the_mean_of_its_windows_over_time(embedder):
    clip = noise(2.5)
    found = embedder.embed(clip, RATE, window=1.0)
    expected = [embedder.vectors(clip[None, start : start + RATE])[0] for start in (0, RATE, 2 * RATE)]
    np.testing.assert_allclose(found.windows, expected, atol=1e-5)
    np.testing.assert_array_equal(found.spans, [[0, 1], [1, 2], [2, 2.5]])
    np.testing.assert_allclose(found.vector, np.average(expected, axis=0, weights=[1, 1, 0.5]), atol=1e-5)
    assert (found.seconds, found.name, found.error) == (2.5, "", None)


def test_short_recordings_stay_as_they_are_unless_filled(embedder):
    clip = noise(0.5)
    np.testing.assert_array_equal(embedder.embed(clip, RATE).vector, embedder.vectors(clip[None])[0])
    padded = np.pad(clip, (0, RATE // 2))
    np.testing.assert_array_equal(
        embedder.embed(clip, RATE, window=1.0, fill="pad").vector, embedder.vectors(padded[None])[0]
    )


def test_the_last_layer_is_what_the_network_calls_its_embedding(network):
    clip = noise(1)
    with torch.inference_mode():
        expected = accelerate(network.eval())(dymn.LogMel()(torch.from_numpy(clip[None]))).embedding[0]
    np.testing.assert_array_equal(Tagger(network, "cpu").embed(clip, RATE).vector, expected.numpy())
    assert Tagger(network, "cpu").embed(clip, RATE, layers="blocks").vector.shape == (
        sum(b.c_out for b in network.config.blocks),
    )


def test_a_batch_gives_what_each_gives_alone_and_a_bad_one_leaves_the_others(embedder, clips):
    paths = [clips / f"{name}.wav" for name in ("a", "bad", "c", "b", "a", "missing")]
    together = list(embedder.embed_files(paths, EmbedSettings(window=0.5), batch_size=3))
    assert [found.name for found in together] == [str(path) for path in paths]
    assert [found.error is None for found in together] == [True, False, True, True, True, False]
    for path, found in zip(paths, together, strict=True):
        if found.error is None:
            np.testing.assert_allclose(found.vector, embedder.embed(path, window=0.5).vector, atol=1e-5)
        else:
            assert isinstance(found.error, AudioError) and path.name in str(found.error)
            assert found.vector.size == found.windows.size == found.spans.size == 0
    with pytest.raises(AudioError, match=r"bad\.wav"):
        embedder.embed(clips / "bad.wav")


def test_what_is_not_allowed(embedder, network):
    for settings in ({"window": 0}, {"hop": 0.0}, {"fill": "mirror"}, {"colour": 1}):
        with pytest.raises(ConfigError):
            embedder.embed(noise(1), RATE, **settings)
    with pytest.raises(ConfigError, match="sample_rate"):
        embedder.embed(noise(1))
    with pytest.raises(ConfigError, match="batch_size"):
        embedder.embed_files([], batch_size=0)
    with pytest.raises(ConfigError, match="layer"):
        Tagger(network, "cpu").embed(noise(1), RATE, layers="first")


def read(path):
    """Return the rows of a file of any of the formats: file, start, end, vector."""
    if path.suffix == ".npy":
        return [(row["file"], row["start"], row["end"], row["embedding"]) for row in np.load(path, allow_pickle=False)]
    if path.suffix == ".parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        columns = parquet.read_table(path).to_pydict()
        return list(
            zip(columns["file"], columns["start"], columns["end"], map(np.float32, columns["embedding"]), strict=True)
        )
    rows = list(csv.reader(path.open(encoding="utf-8")))[1:]
    return [(row[0], float(row[1]), float(row[2]), np.float32(row[3:])) for row in rows]


@pytest.mark.parametrize("ending", ["npy", "csv", "parquet"])
def test_every_format_keeps_names_and_values_together(embedder, model, clips, tmp_path, ending):
    output = tmp_path / "new" / f"all.{ending}"
    done = run(
        clips / "a.wav", clips / "bad.wav", clips / "c.wav", "-m", model, "-l", "mels", "-l", "last", "-o", output
    )
    assert done.exit_code == 1
    assert "bad.wav" in done.stderr and "Traceback" not in done.stderr
    rows = read(output)
    assert [(row[0], row[1], row[2]) for row in rows] == [
        (str(clips / "a.wav"), 0, 0.5),
        (str(clips / "c.wav"), 0, 2.5),
    ]
    for row in rows:
        np.testing.assert_allclose(row[3], embedder.embed(row[0]).vector, atol=1e-6)
    windows = tmp_path / f"windows.{ending}"
    assert (
        run(clips / "c.wav", "-m", model, "--per-window", "--window", 1, "--hop", 0.5, "-o", windows, "-q").exit_code
        == 0
    )
    assert [(row[1], row[2]) for row in read(windows)] == [(0, 1), (0.5, 1.5), (1, 2), (1.5, 2.5)]
    beside = [] if ending == "parquet" else [f"windows.{ending}.json"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", f"windows.{ending}", *beside]


@pytest.mark.parametrize("ending", ["npy", "csv", "parquet"])
@pytest.mark.parametrize("bad", [[], ["bad.wav"]])
def test_every_file_says_what_made_it(model, clips, tmp_path, ending, bad):
    output = tmp_path / f"a.{ending}"
    paths = [clips / name for name in ["a.wav", *bad]]
    assert run(*paths, "-m", model, "-l", "block3", "-o", output).exit_code == len(bad)
    if ending == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        origin = json.loads(parquet.read_schema(output).metadata[b"dymn"])
        assert origin["names"][0] == "block3_0"
    else:
        origin = json.loads((tmp_path / f"a.{ending}.json").read_text())
    assert (origin["model"], origin["layers"], origin["parameters"]["hop"]) == ("tiny", ["block3"], 10.0)
    assert len(origin["digest"]) == 64 and origin["version"] == dymn.__version__


def test_csv_goes_to_standard_output(model, clips):
    done = run(clips / "a.wav", "-m", model, "-l", "mels")
    assert done.exit_code == 0
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert len(rows) == 1 and {"file", "start", "end", "mels_0", "mels_127"} < set(rows[0])


@pytest.mark.parametrize("ending", ["npy", "csv", "parquet"])
def test_when_nothing_can_be_read_there_is_an_empty_table(model, clips, tmp_path, ending):
    output = tmp_path / f"none.{ending}"
    assert run(clips / "bad.wav", "-m", model, "-o", output).exit_code == 1
    assert read(output) == []


def test_an_error_leaves_the_old_output(model, clips, tmp_path, monkeypatch):
    output = tmp_path / "all.npy"
    output.write_text("old")

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("dymn.inference.windows.computed", interrupt)
    assert run(clips, "-m", model, "-o", output).exit_code == 130
    assert output.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["all.npy"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--layer", "block15"], ["--layer", "last,last"], ["--format", "npy"], ["--format", "xml"], ["-o", "all.txt"],
        ["-o", "."], ["--window", "0"], ["--fill", "mirror"], ["-o", "CLIP", "--format", "csv"],
        ["--model", "no_such_model"], ["--batch-size", "0"],
    ],
)  # fmt: skip
def test_wrong_use_gives_exit_code_2(model, clips, arguments):
    before = (clips / "a.wav").read_bytes()
    done = run(
        clips / "a.wav", "-m", model, *[argument.replace("CLIP", str(clips / "a.wav")) for argument in arguments]
    )
    assert done.exit_code == 2, done.output
    assert done.stdout == "" and done.stderr and "Traceback" not in done.stderr
    assert (clips / "a.wav").read_bytes() == before


def test_without_pyarrow_the_extra_is_named(model, clips, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    done = run(clips / "a.wav", "-m", model, "-o", tmp_path / "a.parquet")
    assert done.exit_code == 1
    assert "dymn[parquet]" in done.stderr


def test_csv_goes_through_a_pipe(model, clips):
    command = [sys.executable, "-m", "dymn", "embed", "-", "-m", model, "-l", "mels"]
    done = subprocess.run(
        list(map(str, command)), input=(clips / "a.wav").read_bytes(), capture_output=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith(b"-,0.000000,0.500000,")
