"""What docs/cli.md promises of every command: help, exit codes, completion."""

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from dymn import cli
from dymn.errors import AudioError, ConfigError, WeightsError
from dymn.system.signals import Ended

PAGE = (Path(__file__).parents[1] / "docs" / "cli.md").read_text(encoding="utf-8")
COMMANDS = sorted(typer.main.get_command(cli.app).commands)


def run(*arguments, **options):
    return CliRunner().invoke(cli.app, list(map(str, arguments)), **options)


def test_the_page_lists_the_codes_that_there_are():
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", PAGE, re.M)}
    of_signals = {Ended(number).exit_code for number in (signal.SIGINT, signal.SIGTERM)}
    assert listed == {0} | {value for name, value in vars(cli).items() if name.startswith("EXIT_")} | of_signals


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_there_and_wrong_use_is_2(command):
    done = run(command, "--help", env={"COLUMNS": "200"})
    assert done.exit_code == 0
    assert re.search(r"[A-Z][^|]+[.:]", done.stdout.split("Usage:")[1]), "a sentence says what the command does"
    refused = run(command, "--no-such-option")
    assert refused.exit_code == 2
    assert refused.stdout == "" and "--no-such-option" in refused.stderr


FAILURES = [
    (AudioError("no sound"), 1), (WeightsError("no weights"), 1), (ConfigError("no such value"), 2), (KeyboardInterrupt(), 130),
    (OSError(28, "No space left on device", "out.json"), 1), (RuntimeError("the moon is full"), 1),
]  # fmt: skip


@pytest.mark.parametrize(("error", "code"), FAILURES, ids=lambda value: type(value).__name__)
def test_every_error_has_its_code_and_no_traceback(error, code):
    app = typer.Typer(cls=cli.Boundary, pretty_exceptions_enable=False)

    @app.command()
    def fail():
        raise error

    app.command("other")(lambda: None)
    done = CliRunner().invoke(app, ["fail"])
    assert done.exit_code == code
    assert done.stderr.startswith("dymn: ") and "Traceback" not in done.stderr


def test_what_is_not_there_is_wrong_use_or_a_failure_but_never_a_success(tmp_path):
    missing = tmp_path / "missing"
    asked = {
        "tag": [missing, "-m", "dymn04_open"], "embed": [missing, "-m", "dymn04_open"], "probe": [missing, "-m", "dymn04_open"],
        "evaluate": ["dymn04_open", "--data", missing], "train": ["--data", missing], "convert": [missing, tmp_path / "out.safetensors"],
        "explain": [missing, "-m", "dymn04_open", "-o", tmp_path / "out.npz"], "models": ["no_such_model*"], "profile": ["no_such_model"],
    }  # fmt: skip
    for command, arguments in asked.items():
        done = run(command, *arguments)
        assert done.exit_code in (1, 2), f"{command}: {done.output}"
        assert done.stderr and "Traceback" not in done.stderr, command
    assert list(tmp_path.iterdir()) == []


UNREADABLE = {
    "tag": ["tag", "missing.wav", "text.wav"], "tag -o": ["tag", "missing.wav", "-o", "out.csv"], "events": ["events", "empty.wav"],
    "embed": ["embed", "missing.wav", "-o", "out.npy"], "explain": ["explain", "missing.wav"], "probe": ["probe", "missing"],
    "evaluate": ["evaluate", "mn04_as", "--data", "missing"], "train": ["train", "--data", "missing"],
    "teach": ["teach", "missing", "--models", "mn04_as", "-o", "out.safetensors"], "shards": ["shards", "missing", "out"],
}  # fmt: skip


@pytest.mark.parametrize("words", UNREADABLE.values(), ids=UNREADABLE)
def test_wrong_paths_are_told_before_pytorch_is_loaded(words, tmp_path):
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "empty.wav").touch()
    code = "import sys\nfrom dymn.cli import main\ntry: main()\nfinally: sys.exit(9) if 'torch' in sys.modules else None"
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode in (1, 2), done.stderr
    wrong = [word for word in words if word.startswith(("missing", "text", "empty"))]
    assert all(word in line for word, line in zip(wrong, done.stderr.splitlines(), strict=True))


def completions(line):
    """Return what bash is offered at the end of a line."""
    asked = {"_DYMN_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = run(prog_name="dymn", env=asked)
    assert done.exit_code == 0, done.output
    return done.stdout.split()


def test_values_of_options_are_the_keys_of_the_data_they_name():
    from dymn import export
    from dymn.audio import pcm, windows
    from dymn.data.pack import ENCODINGS
    from dymn.inference import selection
    from dymn.inference.formats import embeddings, events, tags
    from dymn.inference.frames import METHODS
    from dymn.profiling.formats import COMPARISON_FORMATS, PROFILE_FORMATS

    named = {
        ("tag", "format"): tags.TAGS.formats, ("tag", "fill"): windows.FILLS, ("tag", "combine"): selection.COMBINATIONS,
        ("embed", "format"): embeddings.FORMATS, ("events", "format"): events.EVENTS.formats, ("events", "method"): METHODS,
        ("listen", "format"): pcm.FORMATS, ("export", "format"): export.FORMATS, ("export", "input"): export.INPUTS,
        ("export", "precision"): export.PRECISIONS, ("shards", "audio"): ENCODINGS,
        ("profile", "format"): COMPARISON_FORMATS.keys() & PROFILE_FORMATS.keys(),
    }  # fmt: skip
    for (command, option), keys in named.items():
        assert set(completions(f"dymn {command} --{option} ")) == set(keys), f"{command} --{option}"


def test_commands_options_and_values_are_completed():
    assert {"embed", "evaluate", "events", "explain"} <= set(completions("dymn e"))
    assert completions("dymn embed --lay") == ["--layer"]
    assert completions("dymn embed --fill r") == ["repeat"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_can_be_shown(shell):
    shown = run(prog_name="dymn", env={"_DYMN_COMPLETE": f"source_{shell}"})
    assert shown.exit_code == 0
    assert f"_DYMN_COMPLETE=complete_{shell}" in shown.stdout
    assert "--install-completion" in run("--help").stdout
