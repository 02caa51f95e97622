"""Faults that are provoked.

A disk that is full, files that are spoilt, no memory, a dead process, a clock that goes back.

docs/faults.md is the table of them. Those that take minutes are in slow_faults.py.
"""

import errno
import gc
import hashlib
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

import dymn
from dymn import create_model
from dymn.cli import app
from dymn.commands.output import text_output
from dymn.config import ModelCard
from dymn.data import BadClip, Source, open_source
from dymn.errors import DataError, ResourceError, WeightsError, resource_error
from dymn.inference.discovery import Discovery
from dymn.inference.journal import Journal, journal_path
from dymn.models import pretrained
from dymn.system.files import atomic_write, remove_folder, temporary_folder
from dymn.system.memory import release_memory
from dymn.weights import download, transfer
from dymn.weights.registry import PublishedModel

RATE = 32_000
LABELS = ("low", "high")
QUICK = [
    "--epochs",
    "1",
    "-s",
    "data.least_draws=0",
    "-s",
    "optim.batch_size=4",
    "-s",
    "data.seconds=1",
    "--device",
    "cpu",
]
SIZE = 2**20
"""Bytes of the disk that is full."""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A model, and clips in a folder a class."""
    folder = tmp_path_factory.mktemp("desk")
    network = create_model("mn01", len(LABELS), generator=torch.Generator().manual_seed(0))
    network.card = ModelCard(name="tiny", labels=LABELS, exclusive=True)
    pretrained.save(network, folder / "tiny.safetensors")
    noise = np.random.default_rng(0).normal(0, 0.1, (12, RATE)).astype(np.float32)
    for i, samples in enumerate(noise):
        path = folder / "clips" / LABELS[i % 2] / f"{i}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, RATE)
    return folder


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A disk of a mebibyte."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a disk that is full needs a file system of its own, which only root may mount")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def run(*arguments, **options):
    return CliRunner().invoke(app, list(map(str, arguments)), **options)


def fill(disk, left):
    """Write to the disk until so many bytes are left."""
    with (disk / "filler").open("wb") as file:
        file.write(bytes(os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - left))


WRITERS = {
    "tag.csv": ["tag", "CLIPS", "-m", "MODEL", "-o", "OUT"],
    "tag.json": ["tag", "CLIPS", "-m", "MODEL", "-o", "OUT"],
    "events.csv": ["events", "CLIPS", "-m", "MODEL", "--threshold", "0.001", "-o", "OUT"],
    "embed.npy": ["embed", "CLIPS", "-m", "MODEL", "-o", "OUT"],
    "embed.parquet": ["embed", "CLIPS", "-m", "MODEL", "-o", "OUT"],
    "profile.json": ["profile", "MODEL", "--runs", "0", "-f", "json", "-o", "OUT"],
    "profile.png": ["profile", "MODEL", "--runs", "0", "--plot", "OUT"],
    "convert.safetensors": ["convert", "MODEL", "OUT"],
    "explain.npz": ["explain", "CLIP", "-m", "MODEL", "-k", "2", "-o", "OUT"],
    "explain.html": ["explain", "CLIP", "-m", "MODEL", "-k", "2", "-o", "OUT"],
    "explain.png": ["explain", "CLIP", "-m", "MODEL", "-k", "2", "-o", "OUT"],
    "probe.png": ["probe", "CLIPS", "-m", "MODEL", "--folds", "2", "--plot", "OUT"],
    "teach.safetensors": ["teach", "CLIPS", "--models", "MODEL", "-o", "OUT"],
    "evaluate.csv": ["evaluate", "MODEL", "--data", "CLIPS", "--per-class", "OUT"],
    "export.onnx": ["export", "MODEL", "-o", "OUT"],
    "train": ["train", "--data", "CLIPS", "-m", "mn01", "-o", "OUT", *QUICK],
}


@pytest.mark.parametrize("name", WRITERS)
def test_on_a_full_disk_every_command_fails_and_keeps_existing_files(name, desk, disk):
    if name.startswith("export"):
        pytest.importorskip("onnx")
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = disk / name
    if out.suffix:
        out.write_bytes(b"old")
    fill(disk, 0)
    words = {
        "CLIPS": desk / "clips",
        "CLIP": desk / "clips" / "low" / "0.wav",
        "MODEL": desk / "tiny.safetensors",
        "OUT": out,
    }
    done = run(*(words.get(word, word) for word in WRITERS[name]))
    assert done.exit_code == 1, done.output
    assert re.search("No space left|[Ff]ree some space|[Mm]ake room|cannot be written", done.stderr), done.stderr
    assert "should not have happened" not in done.stderr and str(disk) in done.stderr
    if out.suffix:
        assert out.read_bytes() == b"old"
    assert not [path.name for path in disk.rglob(".*.part")]


def test_with_free_space_the_same_command_resumes(desk, disk):
    """A journal that has begun, and then no more room; the rest of the disk is given back."""
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    out = disk / "tags.jsonl"
    words = ["tag", desk / "clips", "-m", desk / "tiny.safetensors", "--per-window", "--window", "0.05", "-o", out]
    fill(disk, 60_000)
    full = run(*words)
    assert full.exit_code == 1 and not out.exists() and f"{out}" in full.stderr and "No space left" in full.stderr, (
        full.output
    )
    (disk / "filler").unlink()
    del full  # its traceback holds the journal, as no process does that has ended
    gc.collect()
    done = run(*words)
    assert done.exit_code == 0, done.output
    assert len(out.read_text(encoding="utf-8").splitlines()) == 12


def test_a_full_disk_while_the_cache_of_decoded_clips_is_written(desk, disk):
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    fill(disk, SIZE // 4)
    with pytest.raises(DataError, match=r"cannot be created: .*No space left.*disable the cache"):
        open_source("folder", desk / "clips", cache=disk / "cache")
    assert [path.suffix for path in (disk / "cache").iterdir()] == [".lock"]


def test_a_full_disk_during_a_download(disk, monkeypatch):
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    monkeypatch.setenv("DYMN_CACHE", str(disk / "cache"))
    content = bytes(SIZE // 2)
    monkeypatch.setattr(
        transfer,
        "_receive",
        lambda remote, state, file: (content[i : i + 2**16] for i in range(0, len(content), 2**16)),
    )
    model = PublishedModel("x", "mn01", "x.pt", 1, 1, sha256=hashlib.sha256(content).hexdigest(), size=len(content))
    fill(disk, SIZE // 4)
    with pytest.raises(
        WeightsError, match=r"x cannot be stored as .*x\.pt: No space left.*Free some space, or set DYMN_CACHE"
    ):
        download.fetch(model, lambda path: None)
    assert list((disk / "cache").iterdir()) == []
    (disk / "filler").unlink()
    assert download.fetch(model, lambda path: None).path.read_bytes() == content


# TensorBoard's thread, which prints it
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_during_tracking(desk, disk):
    pytest.importorskip("tensorboard")
    for path in disk.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (disk / "logs").mkdir()
    folder = desk / "tracked"
    folder.mkdir()
    (folder / "tensorboard").symlink_to(disk / "logs")
    fill(disk, 0)
    words = [
        "train",
        "--data",
        desk / "clips",
        "-m",
        "mn01",
        "-o",
        folder,
        *QUICK,
        "-s",
        'run.trackers=["tensorboard"]',
    ]
    full = run(*words)
    assert full.exit_code == 1 and "No space left" in full.stderr and "should not have happened" not in full.stderr, (
        full.output
    )
    (disk / "filler").unlink()
    done = run(*words)
    assert done.exit_code == 0, done.output


def test_a_write_that_fails_names_the_file_that_was_to_be(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, atomic_write(tmp_path / "x.npy"):
        raise OSError("4096 requested and 512 written")  # as numpy says it
    assert caught.value.filename == str(tmp_path / "x.npy") and list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # `ZipFile.__del__` closes it again
def test_an_interruption_within_an_archive_stays_one(tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("zipfile._ZipWriteFile.__init__", interrupted)  # the archive then refuses to be closed
    with pytest.raises(KeyboardInterrupt), atomic_write(tmp_path / "x.npz") as file:
        np.savez(file, x=np.zeros(3))
    gc.collect()
    assert list(tmp_path.iterdir()) == []


def interrupt_the_next_close(monkeypatch):
    """Interrupt the next `os.close` after it has closed; `shutil.rmtree` then closes again, which is an error."""
    close = os.close

    def interrupted(descriptor):
        close(descriptor)
        monkeypatch.setattr("os.close", close)
        raise KeyboardInterrupt

    monkeypatch.setattr("os.close", interrupted)


def test_an_interruption_while_a_folder_is_deleted_stays_one(tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    interrupt_the_next_close(monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "work")


def test_temporary_folders(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(FileExistsError), temporary_folder() as folder:
        folder.mkdir()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(KeyboardInterrupt), temporary_folder():
        interrupt_the_next_close(monkeypatch)


def test_a_failed_write_after_an_interruption_is_not_taken_for_one(tmp_path):
    def rescue():
        with atomic_write(tmp_path / "rescued.npz"):
            raise OSError(errno.ENOSPC, "No space left on device")

    try:
        raise KeyboardInterrupt
    except KeyboardInterrupt:
        with pytest.raises(OSError, match="No space left"):
            rescue()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
@pytest.mark.parametrize("words", [["models"], ["models", "--format", "json"]])
def test_standard_output_that_is_full(words):
    with open("/dev/full", "wb") as full:
        command = [sys.executable, "-m", "dymn", *words]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=300, check=False)
    assert done.returncode == 1 and "No space left" in done.stderr and "Traceback" not in done.stderr, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full here")
def test_a_device_that_is_full_is_named():
    with pytest.raises(OSError, match="No space left") as caught, text_output(Path("/dev/full")) as text:
        text.write("tags")
    assert caught.value.filename == "/dev/full"


def spoil(path, at):
    """Turn one bit of a file over."""
    content = bytearray(path.read_bytes())
    content[at] ^= 4
    path.write_bytes(content)


def test_a_flipped_bit_in_a_journal_is_detected(tmp_path):
    output, words = tmp_path / "out.csv", b"the result of a recording"
    (tmp_path / "a.wav").write_bytes(b"audio")
    with Journal(output, {}) as journal:
        journal.find(Discovery([str(tmp_path / "a.wav")]))
        (task,) = journal.to_do()
        journal.put(task, 1.0, words, None)
    spoil(journal_path(output), journal_path(output).read_bytes().index(words) + 5)
    with Journal(output, {}) as journal:
        assert journal.counts().done == 1
        with pytest.raises(DataError, match=r"damaged: the result of .*a\.wav\. Start the command again"):
            list(journal.results())
    with Journal(output, {}) as journal:
        journal.find(Discovery([str(tmp_path / "a.wav")]))
        assert len(list(journal.to_do())) == 1, "it is done again"


def look_through(output, folder):
    with Journal(output, {}) as journal:
        journal.find(Discovery([str(folder)]))
        journal.counts()
        list(journal.results())


def test_a_journal_with_lost_pages_is_named_and_can_be_replaced(tmp_path):
    output = tmp_path / "out.csv"
    for i in range(300):
        (tmp_path / f"{i}.wav").write_bytes(b"audio")
    with Journal(output, {}) as journal:
        journal.find(Discovery([str(tmp_path)]))
        for task in journal.to_do():
            journal.put(task, 1.0, bytes(100), None)
    whole = journal_path(output).read_bytes()
    for begin, end in ((4096, len(whole)), (2000, 4096), (0, 60)):
        journal_path(output).write_bytes(whole[:begin] + b"\x55" * (end - begin) + whole[end:])
        with pytest.raises(DataError, match="--fresh starts over"):
            look_through(output, tmp_path)
        with Journal(output, {}, fresh=True) as journal:
            journal.find(Discovery([str(tmp_path)]))
            assert journal.counts() == (300, 0, 0)


def test_a_journal_of_an_older_version_is_refused_and_begun_anew(tmp_path):
    output = tmp_path / "out.csv"
    with sqlite3.connect(journal_path(output)) as database:
        database.executescript(
            "CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT); INSERT INTO facts VALUES ('format', '1');CREATE "
            "TABLE done (path BLOB PRIMARY KEY, size INTEGER, changed INTEGER, seconds REAL, result BLOB, error TEXT);"
        )
    database.close()
    with pytest.raises(DataError, match=r"unexpected tables.*--fresh"):
        Journal(output, {})
    (tmp_path / "a.wav").write_bytes(b"audio")
    with Journal(output, {}, fresh=True) as journal:
        journal.find(Discovery([str(tmp_path / "a.wav")]))
        journal.put(next(journal.to_do()), 1.0, b"result", None)
        assert [done.result for done in journal.results()] == [b"result"]


def test_a_flipped_bit_in_the_cache_of_decoded_clips_is_detected(desk, tmp_path):
    open_source("folder", desk / "clips", cache=tmp_path)
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    spoil(folder / "audio.i16", 2 * RATE * 3 + 100)
    found = [open_source("folder", desk / "clips", cache=tmp_path)[i] for i in range(12)]
    assert [i for i, clip in enumerate(found) if isinstance(clip, BadClip)] == [3]
    assert f"the cache is damaged; delete {folder}" in found[3].reason
    for name in ("index.npz", "meta.json"):
        whole = (folder / name).read_bytes()
        for cut in (0, len(whole) // 2):
            (folder / name).write_bytes(whole[:cut])
            with pytest.raises(DataError, match="Delete the folder"):
                open_source("folder", desk / "clips", cache=tmp_path)
        (folder / name).write_bytes(whole)


WITHOUT_MEMORY = """
import resource, sys
import numpy as np, torch
from dymn import Tagger
from dymn.errors import ResourceError
from dymn.runtime.torch_backend import TorchBackend
from dymn import create_model

torch.set_num_threads(1)
tagger = Tagger(create_model("dymn04", 2), device="cpu")
samples = np.zeros((1, 32000), np.float32)
tagger.probabilities(samples)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 60 * 2**20,) * 2)
for compute in (tagger.probabilities, tagger.embedder("last").vectors):
    try:
        compute(torch.zeros(1, 32000).expand(2000, 32000))
    except ResourceError as error:
        assert "memory for a batch of 2000 windows" in str(error) and "smaller batch" in str(error), error
    else:
        sys.exit("there was room enough")
assert np.isfinite(tagger.probabilities(samples)).all()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="bounds a process's memory as Linux does")
def test_lack_of_memory_is_an_error_with_a_remedy_and_the_process_survives():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_MEMORY], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_what_an_operation_without_memory_held_is_released():
    class Held:
        pass

    def work():
        held = Held()
        kept.append(weakref.ref(held))
        try:
            raise MemoryError
        except MemoryError as error:
            raise ResourceError("no memory") from error

    kept = []
    try:
        work()
    except ResourceError as caught:
        error = caught
    assert kept[0]() is not None
    release_memory(error)
    assert kept[0]() is None


SERVER_WITHOUT_MEMORY = """
import io, resource, sys
import numpy as np, soundfile
from starlette.testclient import TestClient
from dymn import Tagger
from dymn.serve.app import create_app
from dymn.serve.settings import ServeSettings

recordings = {seconds: io.BytesIO() for seconds in (10, 60, 400)}
for seconds, file in recordings.items():
    soundfile.write(file, np.full(seconds * 8000, 999, np.int16), 8000, format="WAV")

def post(seconds, **how):
    return client.post("/v1/tag", content=recordings[seconds].getvalue(), params=how)

settings = ServeSettings(workers=1, max_window=600, batch_size=32)
with TestClient(create_app({"one": Tagger.from_pretrained("dymn04_open", device="cpu")}, settings)) as client:
    before = post(10).json()["tags"]
    assert post(60, window=60).status_code == 200
    pages = int(open("/proc/self/statm").read().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + 32 * 2**20,) * 2)
    for _ in range(3):
        full = post(400, window=400)
        assert full.status_code == 503 and full.json()["error"]["code"] == "memory", full.text
        assert full.headers["Retry-After"], full.text
        assert client.get("/health").status_code == client.get("/ready").status_code == 200
        assert post(10).json()["tags"] == before
"""


@pytest.mark.skipif(sys.platform != "linux", reason="bounds a process's memory as Linux does")
def test_a_server_without_memory_rejects_a_request_and_answers_the_next():
    pytest.importorskip("fastapi")
    done = subprocess.run(
        [sys.executable, "-c", SERVER_WITHOUT_MEMORY], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_errors_of_libraries_about_memory_and_dead_processes():
    dead = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
    for error, words in (
        (dead, "fewer workers"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB"), "smaller batch"),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried"
            ),
            "smaller batch",
        ),
        (RuntimeError("can't start new thread"), "fewer workers"),
        (MemoryError("Unable to allocate 8 GiB"), "smaller batch"),
    ):
        found = resource_error(error)
        assert isinstance(found, ResourceError) and words in str(found)
    assert (
        resource_error(RuntimeError("shapes do not fit")) is None
        and resource_error(ValueError("out of memory")) is None
    )


class Deadly:
    """A store whose reader is killed, as the system does where memory runs out."""

    marks = None

    def __init__(self, store):
        self.store = store

    def __getattr__(self, name):
        return getattr(self.store, name)

    def read(self, place):
        if place == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.store.read(place)

    def __reduce__(self):
        return Deadly, (self.store,)


@pytest.mark.skipif(os.name != "posix", reason="sends signals")
@pytest.mark.parametrize(
    "words",
    [
        ["train", "--data", "CLIPS", "-m", "mn01", "-o", "OUT", *QUICK, "-s", "data.workers=2"],
        [
            "train",
            "--data",
            "CLIPS",
            "-m",
            "mn01",
            "-o",
            "OUT",
            *QUICK,
            "-s",
            "data.workers=2",
            "-s",
            "data.cache=CACHE",
        ],
        ["teach", "CLIPS", "--models", "MODEL", "-o", "OUT", "--workers", "2"],
        ["evaluate", "MODEL", "--data", "CLIPS", "--workers", "2"],
        ["probe", "CLIPS", "-m", "MODEL", "--workers", "2", "--folds", "2"],
    ],
    ids=["train", "cache", "teach", "evaluate", "probe"],
)
def test_a_killed_reading_process_ends_the_command_with_a_remedy(words, desk, tmp_path, monkeypatch):
    real = Source.__init__
    monkeypatch.setattr(
        Source, "__init__", lambda self, catalog, store, **more: real(self, catalog, Deadly(store), **more)
    )
    names = {
        "CLIPS": desk / "clips",
        "MODEL": desk / "tiny.safetensors",
        "OUT": tmp_path / "out",
        "CACHE": tmp_path / "cache",
    }
    for name, path in names.items():
        words = [str(word).replace(name, str(path)) for word in words]
    begun = time.monotonic()
    done = run(*words)
    assert done.exit_code == 1 and "fewer workers" in done.stderr, done.output
    assert time.monotonic() - begun < 300 and not (tmp_path / "out").is_file()


def test_a_clock_that_is_set_back_changes_nothing(desk, tmp_path, monkeypatch):
    """Durations are taken from a clock that only goes on.

    The time of day is asked for only to remove what is a day old, and to say when a sound was heard live.
    """
    asked = {
        path.name
        for path in Path(dymn.__file__).parent.rglob("*.py")
        if re.search(r"time\.time\(|datetime\.now", path.read_text("utf-8"))
    }
    assert asked == {"download.py", "listen.py", "network.py"}
    clock = iter(range(2_000_000_000, 0, -100_000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    out = tmp_path / "out.csv"
    words = ["tag", desk / "clips", "-m", desk / "tiny.safetensors", "-o", out]
    put, calls = Journal.put, []

    def interrupted(self, *arguments):
        calls.append(arguments)
        if len(calls) == 7:
            raise KeyboardInterrupt
        put(self, *arguments)

    monkeypatch.setattr(Journal, "put", interrupted)
    assert run(*words).exit_code == 130
    done = run(*words)
    assert done.exit_code == 0 and "6 of 12 recordings are already complete" in done.stderr, done.output
    trained = run("train", "--data", desk / "clips", "-m", "mn01", "-o", tmp_path / "run", *QUICK)
    assert trained.exit_code == 0, trained.output
