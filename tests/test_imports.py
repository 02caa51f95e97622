"""`--import MODULE`: attentions and kinds of data of one's own, from every command and from checkpoints."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dymn import cli
from dymn.architectures import ATTENTIONS
from dymn.commands.imports import import_module
from dymn.errors import ConfigError
from layouts import write_audio

DOCS = Path(__file__).parents[1] / "docs"
DATASET = """
from dymn.data import TASKS, Catalog, TaskSpec
from dymn.data.readers import multi_hot
from dymn.data.stores import FileStore


class OwnStore(FileStore):
    pass


def read_by_name(root):
    paths = sorted(root.glob("*/*.wav"))
    names = [[path.parent.name] for path in paths]
    labels = tuple(sorted({name for (name,) in names}))
    keys = tuple(path.relative_to(root).as_posix() for path in paths)
    return Catalog(keys=keys, labels=labels, targets=multi_hot(names, labels, root)), OwnStore(paths)


TASKS["by_name"] = TaskSpec(read_by_name, classes=None, loss="ce", metric="accuracy")
"""


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """Clips in a folder a class, the attention of docs/add-an-attention.md and a kind of data, each in a module."""
    folder = tmp_path_factory.mktemp("desk")
    for i, name in enumerate(("knock", "whistle")):
        for clip in range(4):
            write_audio(folder / "clips" / name / f"{clip}.wav", 300 + 2000 * i + 10 * clip)
    page = (DOCS / "add-an-attention.md").read_text(encoding="utf-8")
    (folder / "eca.py").write_text(re.search(r"^```python\n(.*?)^```$", page, re.M | re.S)[1])
    (folder / "own").mkdir()
    (folder / "own" / "by_name.py").write_text(DATASET)
    return folder


def dymn(desk, *words):
    """Run a command in a process of its own, where nothing is imported yet."""
    return subprocess.run(
        [sys.executable, "-m", "dymn", *words],
        cwd=desk,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "COLUMNS": "200"},
    )


@pytest.fixture(scope="module")
def checkpoint(desk):
    """A network with an attention of one's own, trained on data of a kind of one's own that a process decodes."""
    settings = ("model.settings.attention=eca", "model.settings.attention_blocks=se", "data.least_draws=0")
    settings += ("optim.batch_size=4", "data.workers=1")
    given = [word for setting in settings for word in ("--set", setting)]
    words = ("--data", "clips", "--kind", "by_name", "--model", "mn01", "--epochs", "1", "--output", "run")
    done = dymn(desk, "train", *words, *given, "--import", "eca", "--import", "own/by_name.py", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    return "run/best.safetensors"


def test_an_attention_and_a_dataset_of_ones_own_work_from_training_to_tags(desk, checkpoint):
    tagged = dymn(desk, "tag", "clips/knock/0.wav", "-m", checkpoint, "--import", "eca", "--format", "json")
    assert tagged.returncode == 0, tagged.stderr
    (recording,) = json.loads(tagged.stdout)["recordings"]
    assert {tag["label"] for tag in recording["tags"]} == {"knock", "whistle"}
    words = ("evaluate", checkpoint, "--data", "clips", "--kind", "by_name", "--format", "json")
    judged = dymn(desk, *words, "--import", "own/by_name.py", "--import=eca")
    assert judged.returncode == 0, judged.stderr
    assert json.loads(judged.stdout)["clips"] == 8


@pytest.mark.parametrize("command", ["tag clips/knock/0.wav -m", "evaluate -d clips", "profile", "train -d clips -m"])
def test_a_checkpoint_imports_nothing_and_its_message_names_the_option(desk, checkpoint, command, monkeypatch):
    monkeypatch.chdir(desk)
    monkeypatch.delitem(ATTENTIONS, "eca", raising=False)
    done = CliRunner().invoke(cli.app, [*command.split(), checkpoint])
    assert done.exit_code in (1, 2) and "eca" not in sys.modules
    assert "attention is 'eca'" in done.stderr and "--import MODULE" in done.stderr


def test_a_kind_that_is_not_imported(desk, monkeypatch):
    monkeypatch.chdir(desk)
    done = CliRunner().invoke(cli.app, ["train", "--data", "clips", "--kind", "by_name"])
    assert done.exit_code == 2 and "kind is 'by_name'" in done.stderr and "--import MODULE" in done.stderr


@pytest.mark.parametrize("command", sorted(typer.main.get_command(cli.app).commands))
def test_every_command_has_the_option(command):
    names = [name for option in typer.main.get_command(cli.app).commands[command].params for name in option.opts]
    assert names.count("--import") == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("no_such_module_anywhere", None, "there is no module no_such_module_anywhere.*path of a Python file"),
        ("./missing.py", None, "there is no such file"),
        ("wrong_own.py", "import no_such_module_either", "fails: ModuleNotFoundError.*no_such_module_either"),
        ("broken_own.py", "raise ValueError('moon')", "fails: ValueError: moon"),
        ("json.py", "", "another module is called json"),
    ],
)
def test_what_cannot_be_imported_is_wrong_use(tmp_path, monkeypatch, name, content, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=f"--import {re.escape(name)}.*{message}"):
        import_module(name)
