"""What `tag`, `embed` and `events` have in common: a tree is walked once, a recording opened once, and runs are resumed."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from dymn.cli import app

EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"
COUNTED = """
import atexit, collections, json, os, sys
opened, walked = collections.Counter(), collections.Counter()
def hook(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes)):
        opened[os.fsdecode(arguments[0])] += 1
    if event == "os.scandir":
        walked[os.fsdecode(arguments[0])] += 1
sys.addaudithook(hook)
import dymn.__main__
try:
    dymn.__main__.main()
finally:
    with open(os.environ["COUNTS"], "w") as file:
        json.dump([opened, walked], file)
"""


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """A tree of recordings in several formats, and a file that is not one."""
    folder = tmp_path_factory.mktemp("clips")
    noise = np.random.default_rng(0).normal(0, 0.1, 16_000)
    for i, name in enumerate(("a.wav", "b/c.flac", "b/d/e.ogg", "b/f.wav")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(folder / name, noise * (i + 1) / 4, 16_000)
    (folder / "b" / "bad.wav").write_text("this is no audio")
    return folder


def run(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.mark.parametrize("rows", [False, True], ids=["stream", "journal"])
@pytest.mark.parametrize("command", ["tag", "embed", "events"])
def test_a_tree_is_walked_once_and_each_recording_opened_once(command, rows, clips, tmp_path):
    counts, output = tmp_path / "counts", ["-o", tmp_path / "out.csv"] if rows else ["-f", "csv"]
    words = [sys.executable, "-c", COUNTED, command, clips, "-m", "dymn04_open", *output]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, env={**os.environ, "COUNTS": str(counts)}, timeout=100)
    assert done.returncode == 1 and "bad.wav" in done.stderr, done.stderr
    opened, walked = json.loads(counts.read_text())
    files = [str(path) for path in clips.rglob("*.*")]
    assert len(files) == 5
    assert {name: opened.get(name) for name in files} == dict.fromkeys(files, 1)
    folders = [str(clips), str(clips / "b"), str(clips / "b" / "d")]
    assert {name: walked.get(name) for name in folders} == dict.fromkeys(folders, 1)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("command", ["tag", "embed", "events"])
def test_no_library_opens_a_recording_again(command, clips, tmp_path):
    log = tmp_path / "log"
    words = ["strace", "-f", "-qq", "-e", "trace=open,openat,openat2", "-o", log]
    words += [sys.executable, "-m", "dymn", command, clips, "-m", "dymn04_open", "-o", tmp_path / "out.csv"]
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=100)
    if "ptrace" in done.stderr:
        pytest.skip("strace may not trace here")
    opened = Counter(path for path in re.findall(r'open\w*\([^"]*"([^"]+)"', log.read_text()) if path.startswith(str(clips)))
    assert {path: opened[str(path)] for path in clips.rglob("*.*")} == dict.fromkeys(clips.rglob("*.*"), 1)
