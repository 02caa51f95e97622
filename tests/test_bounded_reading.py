"""Files that never end, are vast, or say of themselves what is not so.

Each reader refuses them, at once and in little memory.
"""

import io
import os
import struct
import tarfile
import time
import tracemalloc
import zipfile

import numpy as np
import pytest
from typer.testing import CliRunner

import layouts
from dymn.cli import app
from dymn.data import TeacherTable, open_source
from dymn.data.packed import INDEX_FILE, read_index
from dymn.data.pickles import read_npz
from dymn.data.readers import MAX_COLUMNS, csv_rows
from dymn.data.stores import FileStore
from dymn.data.tar import MAX_NAME, MAX_RECORDS, tar_members
from dymn.errors import DataError, DymnError, WeightsError
from dymn.system.files import open_regular, read_bounded
from dymn.weights import open_checkpoint
from dymn.weights.files import read_file

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")


@pytest.fixture
def endless(tmp_path):
    """A function that makes a file without an end of a name: a pipe, a device, or one that is vast."""

    def make(kind, name):
        path = tmp_path / name
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        else:
            with path.open("wb") as file:
                file.truncate(2**41)
        return path

    return make


@pytest.fixture(autouse=True)
def in_little_time_and_memory():
    tracemalloc.start()
    before = time.process_time()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - before < 20 and peak < 64 * 2**20


def refused(work, *arguments):
    with pytest.raises((DymnError, OSError)) as caught:
        work(*arguments)
    return str(caught.value)


@pytest.mark.parametrize("kind", ["pipe", "device", "vast"])
def test_what_has_no_end_is_not_read(endless, tmp_path, kind):
    assert ("more than" if kind == "vast" else "not a regular file") in refused(read_bounded, endless(kind, "any"), 100)
    for name in ("a.safetensors", "a.pt", "a.onnx", "a"):
        assert refused(open_checkpoint, str(endless(kind, name)))
    assert refused(open_source, "csv", endless(kind, "list.csv"))
    assert refused(read_npz, endless(kind, "a.npz"), ("x",))
    if kind != "vast":  # zeros are the end of an archive
        assert refused(tar_members, endless(kind, "a.tar"))
    assert refused(TeacherTable.open, endless(kind, "table.safetensors"))
    assert refused(TeacherTable.published, endless(kind, "table.npy"), tmp_path / "none.csv")
    assert refused(FileStore([endless(kind, "clip.wav")]).read, 0)
    assert refused(read_index, endless(kind, INDEX_FILE).parent)


@pytest.mark.parametrize(
    "words",
    [
        ["tag", "dog.wav", "-m"],
        ["train", "--data"],
        ["convert", "{}", "out.safetensors"],
        ["profile"],
        ["train"],
        ["evaluate", "dymn04_open", "--data"],
        ["convert", "dymn04_open", "out.safetensors", "--labels"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("kind", ["device", "vast"])
def test_no_command_reads_for_ever(endless, tmp_path, monkeypatch, words, kind):
    monkeypatch.chdir(tmp_path)
    layouts.write_audio(tmp_path / "dog.wav")
    suffix = {"train": ".toml", "profile": ".json"}.get(words[-1], ".csv" if "--data" in words else ".pt")
    path = str(endless(kind, f"endless{suffix}"))
    given = [path if word == "{}" else word for word in words] if "{}" in words else [*words, path]
    result = CliRunner().invoke(app, given)
    assert result.exit_code in (1, 2) and "should not have happened" not in result.output, result.output


def test_regular_files_are_read(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert read_bounded(tmp_path / "a", 3) == b"abc"
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"abc"
    assert "more than 2 bytes" in refused(read_bounded, tmp_path / "a", 2)
    with pytest.raises(WeightsError, match="at most 2"):
        read_file(tmp_path / "a", 2)


def header(kind, size, name=b"a.opus", magic=b"ustar\x0000"):
    block = bytearray(512)
    block[: len(name)], block[156:157], block[257:265] = name, kind, magic
    block[124:136] = b"%011o\0" % size if size < 8**11 else b"\x80" + size.to_bytes(11, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def test_names_of_archives_are_those_of_the_standard_library(tmp_path):
    names = ["a.opus", "./b.opus", "x" * 90 + "/" + "y" * 90 + ".opus", "z" * 300 + ".opus", "ü.opus", "s/"]
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        path = tmp_path / f"{form}.tar"
        with tarfile.open(
            path, "w", format=form, pax_headers={"comment": "global"} if form == tarfile.PAX_FORMAT else None
        ) as archive:
            for i, name in enumerate(names):
                if form == tarfile.USTAR_FORMAT and len(name) > 250:
                    continue
                info = tarfile.TarInfo(name.rstrip("/"))
                info.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
                info.size = 0 if name.endswith("/") else 100 * i + 1
                archive.addfile(info, io.BytesIO(bytes([i]) * info.size))
        with tarfile.open(path) as archive:
            expected = {info.name.removeprefix("./"): (info.offset_data, info.size) for info in archive if info.isreg()}
        assert {name: (member.offset, member.size) for name, member in tar_members(path).items()} == expected


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (header(b"L", 3 * 2**30), "a name or records of 3,221,225,472 bytes"),
        (header(b"L", MAX_NAME + 1) + bytes(2 * MAX_NAME), "a name or records of"),
        (header(b"x", MAX_RECORDS + 1) + bytes(2 * MAX_RECORDS), "a name or records of"),
        (header(b"x", 512) + b"9" * 512, "a record of its headers has a wrong length"),
        (header(b"x", 11) + b"11 size=-1\n".ljust(512, b"\0") + header(b"0", 0), "the size of 'a.opus' is '-1'"),
        (header(b"x", 22) + b"22 GNU.sparse.major=1\n".ljust(512, b"\0") + header(b"0", 0), "as a sparse file"),
        (header(b"S", 0), "as a sparse file"),
        (header(b"0", 2**62), "ends within 'a.opus'"),
        (header(b"0", 0) * 2, "twice"),
        (header(b"0", 0)[:300], "within a header"),
        (b"\x1f\x8b" + bytes(600), "wrong checksum"),
    ],
)
def test_archives_that_are_none_are_refused(tmp_path, content, says):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=says):
        tar_members(tmp_path / "a.tar")


def test_many_headers_take_time_that_grows_with_their_number(tmp_path):
    """The standard library's reader copies all global headers for each file."""
    record = b"".join(b"%d k%06d=v\n" % (len(b"%d k%06d=v\n" % (13, i)), i) for i in range(300))
    extra = header(b"g", len(record)) + record + bytes(-len(record) % 512)
    (tmp_path / "a.tar").write_bytes(b"".join(extra + header(b"0", 0, b"%06d.opus" % i) for i in range(1000)))
    assert len(tar_members(tmp_path / "a.tar")) == 1000


@pytest.mark.parametrize("kind", ["'<U0'", "'|S0'", "'|V0'", "[]", "[('a', '|O')]", "'<U536870911'"])
@pytest.mark.parametrize("shape", [(10**9,), (2**62, 4), (-1,), ()])
def test_arrays_that_announce_what_is_not_there_are_refused(tmp_path, kind, shape):
    text = f"{{'descr': {kind}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(8))
    with pytest.raises(DataError, match="was not executed"):
        read_npz(tmp_path / "a.npz", ("x",))


def test_arrays_are_unpacked_once(tmp_path):
    """Forty million zeros take 40 kB of the file and 40 MB of memory, not twice that."""
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(40_000_000, np.uint8))
    assert read_npz(tmp_path / "a.npz", ("x",))["x"].nbytes == 40_000_000


def test_a_damaged_array_is_noticed(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(1000))
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[4000] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match="CRC"):
        read_npz(tmp_path / "a.npz", ("x",))


def test_tables_of_many_columns_are_refused(tmp_path):
    (tmp_path / "a.csv").write_text("path,label\n" + "," * (MAX_COLUMNS + 1))
    with pytest.raises(DataError, match="row 2: 4,098 values"):
        csv_rows(tmp_path / "a.csv")


def test_text_of_numbers_that_are_no_characters_is_refused(tmp_path):
    text = np.array(["dog", "cat"])
    text.view(np.uint32)[1] = 0x7F0030  # what a flipped bit makes of a letter
    np.savez(tmp_path / "a.npz", x=text)
    with pytest.raises(DataError, match="not characters"):
        read_npz(tmp_path / "a.npz", ("x",))
