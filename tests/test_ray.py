"""Many recordings on Ray: what comes out is what one process gives, whoever dies on the way."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from dymn import Tagger
from dymn.audio import reading
from dymn.cli import app
from dymn.commands.imports import IMPORTED
from dymn.errors import ConfigError, MissingExtraError
from dymn.inference.selection import TagSettings
from dymn.ray import Engine, _decode, _pieces, _table, _Windows, find

EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"
AS_RAY = ("--backend", "torch", "--window", "4")
"""Ray's actors compute with PyTorch."""
with_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="ray is not installed: pip install 'dymn[ray]'"
)


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


def chunk(*paths):
    pyarrow = pytest.importorskip("pyarrow")
    return pyarrow.table(
        {"place": list(range(len(paths))), "path": pyarrow.array(map(os.fsencode, paths), pyarrow.binary())}
    )


@pytest.fixture
def remote():
    """A store of fsspec in memory with a recording, a file that is none, and one that is hidden."""
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for name, content in (("a/1.wav", None), ("a/b/2.WAV", b"no audio"), ("a/.hidden.wav", b""), ("a/notes.txt", b"")):
        with store.open(f"/ray/{name}", "wb") as file:
            if content is None:
                soundfile.write(file, np.full(16_000, 0.5, np.float32), 32_000, format="WAV")
            else:
                file.write(content)
    yield "memory://ray"
    store.rm("/ray", recursive=True)


def test_paths_and_urls_are_found_each_once_in_their_order(remote, tmp_path):
    (tmp_path / "x.wav").write_bytes(b"")
    urls = ["memory:///ray/a/1.wav", "memory:///ray/a/b/2.WAV"]
    asked = [
        f"{remote}/a",
        str(tmp_path),
        f"{remote}/a/*.wav",
        f"{remote}/c",
        f"{remote}/none*",
        "nosuch://x/y",
        str(tmp_path / "x.wav"),
    ]
    found, lost = find(asked)
    assert found == [*urls, tmp_path / "x.wav", f"{remote}/c"]
    assert [path for path, _ in lost] == [f"{remote}/none*", "nosuch://x/y"]
    assert "There is no recording at" in str(lost[0][1]) and "nosuch" in str(lost[1][1])


def test_urls_are_decoded_and_bad_ones_say_why(remote, tmp_path):
    urls = [f"{remote}/a/1.wav", f"{remote}/a/b/2.WAV", f"{remote}/gone.wav", "nosuch://x/y.wav"]
    tables = list(_decode(chunk(*urls), _Windows(32_000, 0.25, None, "repeat")))
    rows = [row for table in tables for row in _pieces(table)]
    assert [(place, piece.start, piece.end) for place, piece in rows if piece.features is not None] == [
        (0, 0.0, 0.25),
        (0, 0.25, 0.5),
    ]
    assert all((piece.features == 0.5).all() for _, piece in rows if piece.features is not None)
    ends = [piece for _, piece in rows if piece.features is None]
    assert [piece.recording.n_samples for piece in ends] == [16_000, 0, 0, 0]
    assert ends[0].error is None
    for url, end in zip(urls[1:], ends[1:], strict=True):
        assert url in str(end.error)
    ends[0].recording.notes.channel = 2
    again = list(_pieces(_table([(place, piece, piece.features) for place, piece in rows])))
    assert str(again) == str(rows)


def test_without_ray_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtraError, match=r"dymn\[ray\]"):
        list(Engine().tag_files(Tagger.from_pretrained("dymn04_open", "cpu"), [EXAMPLES / "dog.ogg"]))
    refused = run("tag", EXAMPLES / "dog.ogg", "-m", "dymn04_open", "--ray", "local")
    assert refused.exit_code == 1 and "dymn[ray]" in refused.stderr and "Traceback" not in refused.output


def test_what_cannot_be_is_refused_before_ray_starts(tmp_path):
    tagger = Tagger.from_pretrained("dymn04_open", "cpu")
    for wrong in ({"workers": 0}, {"threads": 0}):
        with pytest.raises(ConfigError, match="at least 1"):
            Engine(**wrong)
    for sources, how in ((["-"], {}), ([], {"batch_size": 0}), ([], {"settings": TagSettings(labels=("no such",))})):
        with pytest.raises(ConfigError):
            Engine().tag_files(tagger, sources, **how)
    refused = run("tag", EXAMPLES, "-m", "dymn04_open", "--ray", "local", "--plot", tmp_path)
    assert refused.exit_code == 2 and "--plot" in refused.stderr
    refused = run("embed", EXAMPLES, "-m", "dymn04_open", "--ray", "local", "--backend", "onnx")
    assert refused.exit_code == 2 and "cannot be combined with --ray" in refused.stderr


class LocalData:
    """What `Engine` uses of a dataset of Ray, computed in this process; what would be sent is pickled."""

    def __init__(self, tables):
        self.tables = list(tables)
        self.context = SimpleNamespace(execution_options=SimpleNamespace())

    def map_batches(self, function, *, fn_args=(), fn_constructor_args=None, **_):
        import cloudpickle

        if fn_constructor_args is not None:
            function = function(*cloudpickle.loads(cloudpickle.dumps(fn_constructor_args)))
        found = (function(table, *fn_args) for table in self.tables)
        return LocalData(one for some in found for one in ([some] if hasattr(some, "schema") else some))

    def iter_batches(self, **_):
        return iter(self.tables)


@pytest.fixture
def in_process(monkeypatch):
    """A module `ray` that computes in this process."""
    cloudpickle = pytest.importorskip("cloudpickle")
    pytest.importorskip("pyarrow")
    data = SimpleNamespace(from_arrow=LocalData, ActorPoolStrategy=lambda size: size)
    module = SimpleNamespace(
        data=data,
        cloudpickle=cloudpickle,
        exceptions=SimpleNamespace(RayError=ZeroDivisionError),
        is_initialized=lambda: True,
        cluster_resources=lambda: {"CPU": 2.0},
    )
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setitem(sys.modules, "ray.data", data)


def test_channels_and_clocks_travel(in_process, tmp_path):
    samples, rate = soundfile.read(EXAMPLES / "dog.ogg", frames=3 * 32_000)
    quiet = tmp_path / "yard_20260102_030405.wav"
    soundfile.write(quiet, np.stack([samples, samples[::-1] * 0.3], axis=1), rate)
    (tmp_path / "bad.wav").write_bytes(b"no audio")
    words = [tmp_path, "-m", "dymn04_open", "--channel", "each", "--clock", "auto", "--window", 1, "-f", "json"]
    here, there = (run("tag", *words, *more) for more in ([], ["--ray", "local"]))
    assert here.exit_code == there.exit_code == 1
    documents = [json.loads(done.stdout)["recordings"] for done in (here, there)]
    assert [one.get("channel") for one in documents[1]] == [one.get("channel") for one in documents[0]]
    assert len(documents[1]) == 3 and documents[1][-1]["clock"]["start"].startswith("2026-01-02T03:04:05")
    for one, other in zip(*documents, strict=True):
        assert one["file"] == other["file"] and one.get("clock") == other.get("clock")
        labels = ([tag["label"] for tag in found.get("tags", [])[:2]] for found in (one, other))
        assert next(labels) == next(labels)


def test_levels_and_groups_travel(in_process, tmp_path):
    groups = tmp_path / "g.toml"
    groups.write_text('dogs = ["Dog", "Bark"]\nrest = ["Speech", "Music"]\n')
    for words in (["tag", "--level", 1, "-k", 0], ["tag", "--groups", groups], ["events", "--groups", groups]):
        words = [words[0], EXAMPLES / "dog.ogg", "-m", "dymn04_open", "--backend", "torch", "-f", "json", *words[1:]]
        here, there = (json.loads(run(*words, *more).stdout)["recordings"][0] for more in ([], ["--ray", "local"]))
        kind = "tags" if words[0] == "tag" else "events"
        assert there[kind] and [one["label"] for one in there[kind]] == [one["label"] for one in here[kind]]
        scores = ([one["score"] for one in found[kind]] for found in (here, there))
        np.testing.assert_allclose(*scores, atol=1e-4)


def test_files_have_the_bytes_of_one_process(in_process, tmp_path):
    """With the same implementation of the network; the compiled code, the default without Ray, rounds otherwise."""
    (tmp_path / "bad.wav").write_text("no audio")
    for command in ("tag", "embed", "events"):
        plain, output = tmp_path / "plain.parquet", tmp_path / "ray.parquet"
        words = [command, EXAMPLES / "dog.ogg", tmp_path / "bad.wav", "-m", "dymn04_open", "--batch-size", 1, *AS_RAY]
        assert (
            run(*words, "--fresh", "-o", plain).exit_code
            == run(*words, "--fresh", "-o", output, "--ray", "local").exit_code
            == 1
        )
        assert output.read_bytes() == plain.read_bytes(), command


def test_modules_that_were_imported_travel(in_process, tmp_path, monkeypatch):
    import cloudpickle

    (tmp_path / "own_part.py").write_text("class Part:\n    name = 'mine'\n")
    words = ["tag", EXAMPLES / "dog.ogg", "-m", "dymn04_open", "--import", tmp_path / "own_part.py"]
    monkeypatch.setattr(sys, "path", [*sys.path])
    try:
        assert run(*words, "--ray", "local").exit_code == 0
        sent = cloudpickle.dumps(sys.modules["own_part"].Part())
        program = "import sys, cloudpickle; print(cloudpickle.load(sys.stdin.buffer).name)"
        there = subprocess.run([sys.executable, "-c", program], input=sent, capture_output=True, cwd="/")
        assert there.stdout.strip() == b"mine", there.stderr
    finally:
        cloudpickle.unregister_pickle_by_value(sys.modules.pop("own_part"))
        IMPORTED.remove("own_part")


@pytest.fixture(scope="module")
def ray():
    """Ray on this machine with room for two actors, whatever the machine; begun once for all tests, as by `Engine`."""
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'dymn[ray]'")
    from dymn.ray import _running

    # Ray's own is 15: on a machine with other work tests would wait for it
    os.environ.setdefault("RAY_worker_niceness", "0")
    with _running("local") as module:
        yield module


@with_ray
def test_all_servers_are_on_loopback_and_nothing_is_reported(ray):
    from ray._common.usage import usage_lib

    assert not usage_lib.usage_stats_enabled()
    assert ray.util.get_node_ip_address() == "127.0.0.1"


@with_ray
def test_an_actor_that_is_killed_changes_no_result(ray, shared, tmp_path):
    """Recordings that need decoding, two actors, one of them shot at the first result, files that are none, one of many
    windows.
    """
    import ray._private.state as state

    bad, long = tmp_path / "bad.wav", tmp_path / "long.wav"
    bad.write_text("no audio")
    soundfile.write(long, 0.1 * np.random.default_rng(0).standard_normal(8000 * 35).astype(np.float32), 8000)
    sources = [*reading.find(EXAMPLES), bad, long, *reading.find(shared / "esc10")[:40], tmp_path / "gone.wav"]
    tagger, settings = Tagger.from_pretrained("dymn04_open", "cpu"), TagSettings(hop=2.5)
    shot = []

    def shoot(name, seconds):
        if not shot:
            alive = [actor for actor in state.actors().values() if actor["State"] == "ALIVE" and actor["Pid"]]
            os.kill(alive[0]["Pid"], signal.SIGKILL)
            shot.append(alive[0]["ActorID"])

    found = list(Engine(workers=2).tag_files(tagger, sources, settings, progress=shoot))
    assert state.actors()[shot[0]]["NumRestarts"] >= 1
    for ours, theirs in zip(found, tagger.tag_files(sources, settings), strict=True):
        assert (ours.name, ours.seconds, str(ours.error)) == (theirs.name, theirs.seconds, str(theirs.error))
        np.testing.assert_allclose(ours.scores, theirs.scores, rtol=0, atol=1e-6)
        assert [(w.start, w.end) for w in ours.timeline] == [(w.start, w.end) for w in theirs.timeline]


@with_ray
def test_the_commands_write_the_files_that_they_write_without_ray(ray, tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "bad.wav").write_text("no audio")
    for command, ending in (("tag", "parquet"), ("embed", "parquet"), ("events", "parquet")):
        asked = [command, EXAMPLES, tmp_path / "bad.wav", "-m", "dymn04_open", "--batch-size", "1", *AS_RAY]
        plain, output = tmp_path / f"plain.{ending}", tmp_path / f"ray.{ending}"
        assert run(*asked, "-o", plain).exit_code == 1
        done = run(*asked, "-o", output, "--ray", "local", "--workers", "2")
        assert done.exit_code == 1, done.output
        assert output.read_bytes() == plain.read_bytes()
        reports = [(tmp_path / f"{name}.{ending}.failed.jsonl").read_text() for name in ("ray", "plain")]
        assert reports[0] == reports[1] and "bad.wav" in reports[0]
    urls = run("tag", EXAMPLES.as_uri(), "-m", "dymn04_open", "--ray", "local", "-f", "csv", "-k", "1")
    assert urls.exit_code == 0, urls.output
    assert urls.stdout.count("file:///") == 6


@with_ray
def test_an_address_without_ray_is_told(tmp_path, monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda *given, **how: (_ for _ in ()).throw(ConnectionError("nobody is there")))
    refused = run("tag", EXAMPLES, "-m", "dymn04_open", "--ray", "10.0.0.1:6379")
    assert refused.exit_code == 2 and "Cannot connect to Ray" in refused.stderr and "nobody is there" in refused.stderr
