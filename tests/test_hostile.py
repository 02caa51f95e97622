"""Input of strangers: a few fuzzed cases of each way in, and what was found by many."""

import io
import pickle
import sqlite3
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import soundfile
import torch
from typer.testing import CliRunner

from dymn.audio import reading
from dymn.cli import app
from dymn.commands.output import _Terminal
from dymn.data import open_source
from dymn.data.pickles import read_index, read_npz
from dymn.errors import AudioError, ConfigError, DataError, WeightsError
from dymn.inference.discovery import Discovery
from dymn.inference.journal import Journal
from dymn.weights.torch_files import read_tensors
from fuzz.harness import run
from fuzz.targets import WAYS

ESCAPE = "\x1b]0;owned\x07\x9b2J\u202e"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WAYS)
def test_fuzzed(name, tmp_path, monkeypatch):
    pytest.importorskip(WAYS[name].needs)
    if name == "state-dict":
        from fuzz.models import PUBLISHED

        if not PUBLISHED.is_file():
            pytest.skip(f"{PUBLISHED} is not here")
    monkeypatch.chdir(tmp_path)
    outcome = run(WAYS[name].make(), 20, 1, tmp_path)
    assert outcome.cases >= 10


def torch_file(tmp_path, change=lambda name, content: content, method=zipfile.ZIP_STORED):
    """Write a state dict of four zeros, with the members of its archive changed."""
    written, path = io.BytesIO(), tmp_path / "weights.pt"
    torch.save({"a": torch.zeros(4)}, written)
    with zipfile.ZipFile(written) as before, zipfile.ZipFile(path, "w", method) as after:
        for info in before.infolist():
            after.writestr(info.filename, change(info.filename, before.read(info)))
    return path


def test_no_tensor_reaches_beyond_what_is_there(tmp_path):
    def more(name, content):
        return content.replace(b"K\x04", b"K\x05") if name.endswith("data.pkl") else content

    assert read_tensors(torch_file(tmp_path))["a"].tolist() == [0, 0, 0, 0]
    with pytest.raises(WeightsError, match="does not fit"):
        read_tensors(torch_file(tmp_path, more))


def test_an_archive_of_weights_that_unpacks_to_more_is_refused(tmp_path):
    path = torch_file(
        tmp_path, lambda name, content: bytes(2**26) if name.endswith("/0") else content, zipfile.ZIP_DEFLATED
    )
    assert path.stat().st_size < 2**17
    with pytest.raises(WeightsError, match="decompresses to more than its size"):
        read_tensors(path)


@pytest.mark.parametrize(("method", "head"), [(zipfile.ZIP_DEFLATED, 0), (zipfile.ZIP_LZMA, 9)])
def test_an_archive_of_weights_whose_members_do_not_unpack_is_refused(tmp_path, method, head):
    path = torch_file(
        tmp_path, lambda name, content: bytes(range(256)) if name.endswith("data.pkl") else content, method
    )
    content = bytearray(path.read_bytes())
    at = content.index(b"data.pkl") + len("data.pkl") + head
    content[at : at + 20] = b"\xff" * 20
    path.write_bytes(content + bytes(2**12))  # as large as what it unpacks to
    with pytest.raises(WeightsError, match="is damaged: "):
        read_tensors(path)


@pytest.mark.parametrize(("at", "value", "reason"), [(10, 99, "compression"), (8, 1, "password required")])
def test_an_archive_of_weights_that_asks_for_what_zipfile_has_not_got_is_refused(tmp_path, at, value, reason):
    content = bytearray(torch_file(tmp_path).read_bytes())
    begin = content.index(b"PK\x01\x02")  # the directory says it first, each member again
    for header, field in ((b"PK\x01\x02", at), (b"PK\x03\x04", at - 2)):
        begin = content.find(header)
        while begin >= 0:
            content[begin + field] = value
            begin = content.find(header, begin + 4)
    (tmp_path / "weights.pt").write_bytes(content)
    with pytest.raises(WeightsError, match=reason):
        read_tensors(tmp_path / "weights.pt")


def test_tensors_that_share_numbers_without_end_are_refused(tmp_path):
    shared = torch.zeros(1000)
    torch.save({str(i): shared for i in range(1000)}, tmp_path / "weights.pt")
    with pytest.raises(WeightsError, match="more than twice the bytes of the file"):
        read_tensors(tmp_path / "weights.pt")


def test_files_of_old_pytorch_are_refused(tmp_path):
    torch.save({"a": torch.zeros(4)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(WeightsError, match=r"written by PyTorch 1\.6 or newer"):
        read_tensors(tmp_path / "old.pt")


def test_a_key_that_takes_for_ever_to_hash_is_refused(tmp_path):
    path = tmp_path / "index.pkl"
    path.write_bytes(b"}" + b")" + b"q\x00h\x00\x86" * 100 + b"K\x01s.")  # {((((), ()), ((), ())), ...): 1}
    with pytest.raises(DataError, match="a dict with a tuple as a key"):
        read_index(path)


def test_one_long_text_does_not_make_an_array_vast(tmp_path):
    path = tmp_path / "names.npz"
    np.savez(path, names=np.array(["x" * 100_000, *[""] * 10_000], object))  # 4 GB as an array of text
    with pytest.raises(DataError, match="at most 4096 letters"):
        read_npz(path, ("names",))


def test_a_damaged_header_of_numpy_is_a_damaged_file(tmp_path):
    with zipfile.ZipFile(tmp_path / "names.npz", "w") as archive:
        archive.writestr("names.npy", b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((((")
    with pytest.raises(DataError, match="was not executed"):
        read_npz(tmp_path / "names.npz", ("names",))


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, b"Z"])
def test_an_archive_that_goes_back_ends(tmp_path, kind):
    info = tarfile.TarInfo("a.opus")
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 10 + struct.pack(">h", -512)
    header[148:156] = b"%06o\0 " % (sum(header) - sum(header[148:156]) + 8 * 32)
    (tmp_path / "x.tar").write_bytes(bytes(header) * 3 + bytes(1024))
    with pytest.raises(DataError, match="without a size"):
        open_source("shards", tmp_path)


@pytest.mark.parametrize(("rows", "chunks"), [(2**31, None), (2, (2**28,))])
def test_tables_of_hdf5_that_claim_to_be_vast_are_refused(tmp_path, rows, chunks):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "eval_segments_mp3.hdf", "w") as file:
        more = {} if chunks is None else {"chunks": chunks, "maxshape": (None,), "compression": "gzip"}
        for name in ("audio_name", "target"):
            file.create_dataset(name, (rows,), "S11", **more)
        file.create_dataset("mp3", (rows,), h5py.vlen_dtype(np.uint8))
    with pytest.raises(DataError, match="bytes of memory"):
        open_source("audioset_hdf5", tmp_path)


@pytest.mark.parametrize(
    "text", ["#EXTM3U\n/etc/passwd\n", "ffconcat version 1.0\nfile /etc/passwd\n", "[playlist]\nFile1=/etc/passwd\n"]
)
def test_playlists_open_nothing(tmp_path, text):
    path = tmp_path / "list.m4a"
    path.write_text(text)
    with pytest.raises(AudioError):
        reading.read(path)


def hours_of_silence(told):
    """Return an hour of silence as FLAC, which takes 100 kB, with or without its length in the header."""
    file = io.BytesIO()
    soundfile.write(file, np.zeros(3600 * 8000, np.int16), 8000, format="FLAC")
    content = bytearray(file.getvalue())
    assert len(content) < 200_000
    if not told:
        content[21] &= 0xF0
        content[22:26] = bytes(4)
    return bytes(content)


@pytest.mark.parametrize("told", [True, False])
def test_hours_of_silence_in_few_bytes_are_not_decoded_by_the_service(told):
    pytest.importorskip("fastapi")
    from starlette.testclient import TestClient

    from dymn.inference.tagger import Tagger
    from dymn.serve.app import create_app
    from dymn.serve.settings import ServeSettings
    from fuzz.service import Loudness

    heard = []

    class Counting(Loudness):
        def probabilities(self, waveforms):
            heard.append(len(waveforms))
            return super().probabilities(waveforms)

    with TestClient(create_app({"one": Tagger(Counting())}, ServeSettings(max_seconds=60))) as client:
        heard.clear()
        assert client.post("/v1/tag", content=hours_of_silence(told)).status_code == 413
        assert sum(heard) < 30
        assert client.post("/v1/tag?labels=" + "*," * 3000, content=b"x").json()["error"]["code"] == "setting"


def test_silence_is_read_in_bounded_memory():
    import tracemalloc

    content = hours_of_silence(told=True)
    tracemalloc.start()
    samples = sum(len(block) for block in reading.stream(io.BytesIO(content)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert samples == 3600 * 32_000 and peak < 64 * 2**20  # 440 MB as a whole


def test_a_journal_that_does_something_by_itself_is_refused(tmp_path):
    with Journal(tmp_path / "out.csv", {}) as journal:
        (tmp_path / "a.wav").write_bytes(b"")
        journal.find(Discovery([str(tmp_path / "a.wav")]))
        journal.put(next(journal.to_do()), 1.0, b"[]", None)
    database = sqlite3.connect(tmp_path / "out.csv.journal")
    database.execute("CREATE TRIGGER t AFTER DELETE ON listed BEGIN UPDATE done SET result = 'x'; END")
    database.commit()
    database.close()
    with pytest.raises(DataError, match="unexpected tables"):
        Journal(tmp_path / "out.csv", {})


def test_a_journal_whose_names_are_no_text_is_refused(tmp_path):
    path = tmp_path / "out.csv.journal"
    (tmp_path / "a.wav").write_bytes(b"")
    with Journal(tmp_path / "out.csv", {}) as journal:
        journal.find(Discovery([str(tmp_path / "a.wav")]))
        journal.put(next(journal.to_do()), 1.0, b"[]", None)
    content = path.read_bytes()
    at = content.index(b"tablefacts") + len("table")
    path.write_bytes(content[:at] + b"\x80" + content[at + 1 :])
    with pytest.raises(DataError, match=r"not text.*--fresh"):
        Journal(tmp_path / "out.csv", {})
    with Journal(tmp_path / "out.csv", {}, fresh=True) as journal:
        assert journal.counts() == (0, 0, 0)


def test_what_terminals_take_for_commands_is_written_as_escapes(tmp_path, capsys):
    assert str(WeightsError(f"extra {ESCAPE}\nnext")) == "extra \\x1b]0;owned\\x07\\x9b2J\\u202e\nnext"
    path = tmp_path / f"{ESCAPE[:4]}.wav"
    path.write_bytes(b"no sound")
    for words in (["tag", str(path), "--quiet"], ["convert", str(path), str(tmp_path / "x.safetensors")]):
        result = CliRunner().invoke(app, words)
        assert result.exit_code == 1 and "\x1b" not in result.output and "\\x1b]0;" in result.output
    out = io.StringIO()
    _Terminal(out).writelines([f"a\tb {ESCAPE}\n"])
    assert out.getvalue() == "a\tb \\x1b]0;owned\\x07\\x9b2J\\u202e\n"


@pytest.mark.parametrize("text", ["a = " + "[" * 100_000, "model = 5", "optim = [1]", "variants = 5"])
def test_recipes_that_are_none_are_wrong_settings(tmp_path, text):
    from dymn.training.recipe import load_recipe

    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "recipe.toml")


def test_pickled_code_is_not_even_looked_up(tmp_path):
    class Hostile:
        def __reduce__(self):
            return (print, ("executed",))

    (tmp_path / "index.pkl").write_bytes(pickle.dumps({"a": Hostile()}))
    with pytest.raises(DataError, match=r"it refers to builtins\.print"):
        read_index(tmp_path / "index.pkl")


def test_damaged_objects_of_hdf5_are_a_damaged_dataset(tmp_path):
    """What h5py raises is of many kinds: a `KeyError` for an object whose header is damaged."""
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "eval_segments_mp3.hdf"
    with h5py.File(path, "w") as file:
        file["audio_name"], file["target"] = np.array([b"a.mp3"]), np.zeros((1, 66), np.uint8)
        file.create_dataset("mp3", (1,), h5py.vlen_dtype(np.uint8))
        place = h5py.h5o.get_info(file["target"].id).addr
    content = bytearray(path.read_bytes())
    content[place] = 255
    path.write_bytes(content)
    with pytest.raises(DataError, match="is damaged"):
        open_source("audioset_hdf5", tmp_path)
