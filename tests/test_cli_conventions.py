"""What docs/cli.md promises of every command: help, exit codes, completion."""

import csv
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from typer.testing import CliRunner

from dymn import cli
from dymn.commands import options
from dymn.data import TeacherTable
from dymn.errors import AudioError, ConfigError, MissingExtraError, WeightsError
from dymn.system.signals import Ended

EXAMPLES = Path(__file__).parents[1] / "examples" / "audio"
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


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tag", "a.wav", "--window", "0"], "'--window': 0 is not allowed; it must be at least 0.05."),
        (["tag", "a.wav", "--window=700"], "'--window': 700 is not allowed; it must be at most 600."),
        (["tag", "a.wav", "-k-1"], "-1 is not allowed; it must be at least 0."),
        (["tag", "a.wav", "-k", "many"], "many is not allowed; it must be a whole number."),
        (["tag", "a.wav", "--speed", "fast"], "fast is not allowed; it must be a number."),
        (["listen", "--rate", "x"], "x is not allowed; it must be a whole number."),
        (["map", "-i", "x", "-o", "x.html", "--points", "1"], "1 is not allowed; it must be at least 2."),
    ],
)
def test_wrong_numbers_are_refused_in_words_of_ours(words, said):
    done = run(*words)
    assert done.exit_code == 2 and said in done.stderr and "Input should" not in done.stderr


def test_no_option_has_words_of_a_library():
    """Every option with a bound or of numbers, with a value out of bounds and one of another type."""
    for name, command in typer.main.get_command(cli.app).commands.items():
        for option in command.params:
            if option.metavar in ("NUMBER", "SECONDS", "FACTOR", "HZ", "MS", "MIB", "MEGABYTES"):
                for value in ("-99999999", "text"):
                    done = run(name, option.opts[0], value)
                    assert done.exit_code == 2 and "Input should" not in done.stderr, done.stderr


FAILURES = [
    (AudioError("no sound"), 1), (WeightsError("no weights"), 1), (ConfigError("no such value"), 2),
    (KeyboardInterrupt(), 130), (OSError(28, "No space left on device", "out.json"), 1),
    (RuntimeError("the moon is full"), 1),
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
        "tag": [missing, "-m", "dymn04_open"], "embed": [missing, "-m", "dymn04_open"],
        "probe": [missing, "-m", "dymn04_open"], "evaluate": ["dymn04_open", "--data", missing],
        "train": ["--data", missing], "convert": [missing, tmp_path / "out.safetensors"],
        "explain": [missing, "-m", "dymn04_open", "-o", tmp_path / "out.npz"], "models": ["no_such_model*"],
        "profile": ["no_such_model"],
    }  # fmt: skip
    for command, arguments in asked.items():
        done = run(command, *arguments)
        assert done.exit_code in (1, 2), f"{command}: {done.output}"
        assert done.stderr and "Traceback" not in done.stderr, command
    assert list(tmp_path.iterdir()) == []


UNREADABLE = {
    "tag": ["tag", "missing.wav", "text.wav"], "tag -o": ["tag", "missing.wav", "-o", "out.csv"],
    "events": ["events", "empty.wav"], "embed": ["embed", "missing.wav", "-o", "out.npy"],
    "explain": ["explain", "missing.wav"], "probe": ["probe", "missing"],
    "evaluate": ["evaluate", "mn04_as", "--data", "missing"], "train": ["train", "--data", "missing"],
    "teach": ["teach", "missing", "--models", "mn04_as", "-o", "out.safetensors"],
    "shards": ["shards", "missing", "out"],
}  # fmt: skip


@pytest.mark.parametrize("words", UNREADABLE.values(), ids=UNREADABLE)
def test_wrong_paths_are_told_before_pytorch_is_loaded(words, tmp_path):
    (tmp_path / "text.wav").write_text("this is no audio")
    (tmp_path / "empty.wav").touch()
    code = (
        "import sys\nfrom dymn.cli import main\ntry: main()\nfinally: sys.exit(9) if 'torch' in sys.modules else None"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode in (1, 2), done.stderr
    wrong = [word for word in words if word.startswith(("missing", "text", "empty"))]
    lines = [line for line in done.stderr.splitlines() if not line.endswith("recordings failed.")]
    assert all(word in line for word, line in zip(wrong, lines, strict=True))


def completions(line):
    """Return what bash is offered at the end of a line."""
    asked = {"_DYMN_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    done = run(prog_name="dymn", env=asked)
    assert done.exit_code == 0, done.output
    return done.stdout.split()


def test_values_of_options_are_the_keys_of_the_data_they_name():
    from dymn import export
    from dymn.audio import pcm, windows
    from dymn.data.packing import ENCODINGS
    from dymn.inference import selection
    from dymn.inference.formats import embeddings, events, tags
    from dymn.inference.frames import METHODS
    from dymn.live import clips
    from dymn.profiling.formats import COMPARISON_FORMATS, PROFILE_FORMATS

    named = {
        ("tag", "format"): tags.TAGS.formats, ("tag", "fill"): windows.FILLS,
        ("tag", "combine"): selection.COMBINATIONS, ("embed", "format"): embeddings.EMBEDDING_FORMATS,
        ("events", "format"): events.EVENTS.formats, ("events", "method"): METHODS,
        ("listen", "encoding"): pcm.PCM_FORMATS, ("listen", "save-format"): clips.KINDS,
        ("export", "format"): export.FORMATS,
        ("export", "input"): export.INPUTS, ("export", "precision"): export.PRECISIONS, ("shards", "audio"): ENCODINGS,
        ("profile", "format"): COMPARISON_FORMATS.keys() & PROFILE_FORMATS.keys(),
    }  # fmt: skip
    for (command, option), keys in named.items():
        assert set(completions(f"dymn {command} --{option} ")) == set(keys), f"{command} --{option}"


def test_commands_options_and_values_are_completed():
    assert {"embed", "evaluate", "events", "explain"} <= set(completions("dymn e"))
    assert completions("dymn embed --lay") == ["--layer"]
    assert completions("dymn embed --fill r") == ["repeat"]


def test_names_of_models_recipes_and_labels_are_completed():
    assert {"dymn04_as", "dymn04_open"} <= set(completions("dymn tag x.wav --model dymn04"))
    assert "mn04" in completions("dymn train --model mn0") and "mn04" not in completions("dymn tag x.wav --model mn0")
    assert "fine_tune" in completions("dymn train fine")
    assert {"Dog", "Door"} <= set(completions("dymn tag x.wav --labels Do"))


def words_of(example):
    """Return the words of the last command of an example, which may be a pipe."""
    return shlex.split(example.rpartition("| ")[2])


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_that_its_parser_accepts_and_quiet(command, tmp_path, monkeypatch):
    group = typer.main.get_command(cli.app)
    found = group.commands[command]
    assert {"--quiet", "-q"} <= {spelling for parameter in found.params for spelling in parameter.opts}
    examples = re.findall(r"`((?:\S+ [^`]*\| )?dymn [^`]+)`", re.split(r"Examples?:", " ".join(found.help.split()))[-1])
    assert examples and all(words_of(example)[:2] == ["dymn", command] for example in examples)
    for example in examples:
        with found.make_context(command, words_of(example)[2:]):
            pass


def test_older_spellings_are_accepted_and_not_shown():
    older = options.OLDER["listen"]
    assert list(options.respelled(["-", "--json", "--format=s16le", "--rate", "1"], older)) == (
        ["-", "--format", "jsonl", "--encoding", "s16le", "--rate", "1"]
    )
    assert list(options.respelled(["--format", "text", "--", "--json"], older)) == ["--format", "text", "--", "--json"]
    group = typer.main.get_command(cli.app)
    for command, spellings in options.OLDER.items():
        shown = {spelling for parameter in group.commands[command].params for spelling in parameter.opts}
        for words, present in spellings.items():
            assert present[0] in shown and (len(words) > 1 or words[0] not in shown)
            with group.commands[command].make_context(
                command, [*words, *(["x"] if present == ("--output",) else [])], resilient_parsing=True
            ):
                pass


def test_wrong_use_names_the_remedy():
    refused = run("tag", "x.wav", "--zzzzzz")
    assert refused.stderr.startswith("dymn: No such option: --zzzzzz.") and "tag --help" in refused.stderr
    refused = run("train", "fine_tun", "--data", ".")
    assert refused.exit_code == 2 and "Did you mean fine_tune" in refused.stderr


WRITERS = {
    "tag": ["tag", "SOUND", "-m", "dymn04_open", "-o"], "events": ["events", "SOUND", "-m", "dymn04_open", "-o"],
    "embed": ["embed", "SOUND", "-m", "dymn04_open", "-o"],
    "tag --plot": ["tag", "SOUND", "-m", "dymn04_open", "--plot"],
    "explain": ["explain", "SOUND", "-m", "dymn04_open", "-o"],
    "convert": ["convert", "dymn04_open"], "profile": ["profile", "mn04", "-o"],
    "profile --plot": ["profile", "mn04", "--plot"], "probe --plot": ["probe", "FOLDER", "-m", "dymn04_open", "--plot"],
}  # fmt: skip


@pytest.mark.parametrize("words", WRITERS.values(), ids=WRITERS)
def test_an_output_whose_ending_names_no_format_is_refused(words, tmp_path):
    replaced = {"SOUND": str(EXAMPLES / "dog.ogg"), "FOLDER": str(EXAMPLES)}
    refused = run(*(replaced.get(word, word) for word in words), tmp_path / "x.xlsx")
    assert (
        refused.exit_code == 2
        and "x.xlsx" in refused.stderr
        and re.search(r"\.\w+", refused.stderr.replace("x.xlsx", ""))
    ), refused.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [WRITERS["tag --plot"], WRITERS["explain"], ["map", "-i", "none", "-o"], ["review", "dymn04_open", "SOUND", "-o"]],
    ids=lambda words: words[0],
)
def test_an_output_that_cannot_be_written_ends_the_command_before_its_work(words, tmp_path, monkeypatch):
    monkeypatch.setattr("dymn.commands.recordings.load_tagger", None)
    (tmp_path / "file").touch()
    words = [{"SOUND": str(EXAMPLES / "dog.ogg")}.get(word, word) for word in words]
    refused = run(*words, tmp_path / "file" / "new" / "x.html")
    assert refused.exit_code == 1 and "x.html: Not a directory. Check the path" in refused.stderr, refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_files_of_a_command_with_one_format_may_have_any_name(tmp_path):
    (tmp_path / "clips").mkdir()
    for i in range(2):
        soundfile.write(tmp_path / "clips" / f"{i}.wav", np.zeros(8_000) + i / 10, 32_000)
    rows = "".join(f"clips/{i}.wav,{name}\n" for i, name in enumerate(("Dog", "Cat")))
    (tmp_path / "clips.csv").write_text(f"file,labels\n{rows}")
    clips = tmp_path / "clips.csv"
    for ending, words in {
        ".onnx": ["export", "dymn04_open", "--seconds", "1", "-o"],
        ".safetensors": ["teach", clips, "--models", "dymn04_open", "--seconds", "1", "-o"],
        ".csv": ["evaluate", "dymn04_open", "--data", clips, "--per-class"],
    }.items():
        done = run(*words, tmp_path / "x.bin")
        assert done.exit_code == 0 and f"is written as a {ending} file" in done.stderr, done.output
        (tmp_path / "x.bin").replace(tmp_path / f"x{ending}")
    assert run("tag", EXAMPLES / "dog.ogg", "-m", tmp_path / "x.onnx", "--window", 1).exit_code == 0
    assert len(TeacherTable.open(tmp_path / "x.safetensors")) == 2
    assert {row["label"] for row in csv.DictReader((tmp_path / "x.csv").open())} >= {"Dog", "Cat"}


STREAMS = {
    ">&-": "closed", ">/dev/full": "full",
}  # fmt: skip
ANSWERS = {
    "tag": "tag SOUND -m dymn04_open", "events": "events SOUND -m dymn04_open", "embed": "embed SOUND -m dymn04_open",
    "models": "models --pretrained", "help": "--help", "help of a command": "tag --help", "version": "--version",
    "recipes": "train --recipes", "listen": "listen - --rate 16000 -m dymn04_open < /dev/zero",
}  # fmt: skip


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("stream", STREAMS, ids=STREAMS.values())
@pytest.mark.parametrize("words", ANSWERS.values(), ids=ANSWERS)
def test_standard_output_that_cannot_be_written_is_an_error_without_traceback(words, stream):
    line = f"{shlex.quote(sys.executable)} -m dymn {words.replace('SOUND', str(EXAMPLES / 'dog.ogg'))} {stream}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1, done.stderr
    assert re.fullmatch(r"dymn: Standard output cannot be written to: .*\.\n", done.stderr)


@pytest.mark.skipif(sys.platform == "win32", reason="pipes are those of POSIX")
@pytest.mark.parametrize("words", [word for word in ANSWERS.values() if "/dev/zero" not in word])
def test_a_reader_that_has_ended_is_141_without_a_message(words):
    line = [sys.executable, "-m", "dymn", *words.replace("SOUND", str(EXAMPLES / "dog.ogg")).split()]
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        running.stdout.close()
        errors = running.stderr.read()
        running.wait(60)
    assert (running.returncode, errors) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("stream", STREAMS, ids=STREAMS.values())
@pytest.mark.parametrize(
    "words", ["tag SOUND -m dymn04_open -o out.csv -q", "convert dymn04_open out.safetensors"], ids=["tag", "convert"]
)
def test_a_complete_file_counts_whatever_became_of_standard_output(words, stream, tmp_path):
    line = f"{shlex.quote(sys.executable)} -m dymn {words.replace('SOUND', str(EXAMPLES / 'dog.ogg'))} {stream}"
    done = subprocess.run(line, shell=True, capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.suffix for path in tmp_path.iterdir()] in ([".csv"], [".safetensors"])


def test_closed_standard_error_costs_only_the_messages(tmp_path):
    line = f"{shlex.quote(sys.executable)} -m dymn tag missing.wav -o out.csv 2>&- >&- <&-"
    assert subprocess.run(line, shell=True, timeout=60, cwd=tmp_path).returncode == 1
    assert "missing.wav" in (tmp_path / "out.csv").read_text()


@pytest.mark.parametrize(
    ("marker", "command"),
    [
        ("", "pip install 'dymn[plot]'"), ("pipx_metadata.json", "pipx install --force 'dymn[plot]"),
        ("uv-receipt.toml", "uv tool install --force 'dymn[plot]"), ("pyvenv.cfg", "uv pip install 'dymn[plot]"),
    ],
)  # fmt: skip
def test_a_missing_extra_is_installed_as_dymn_was(marker, command, tmp_path, monkeypatch):
    if marker:
        (tmp_path / marker).write_text("uv = 0.9\n")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert command in str(MissingExtraError("Drawing", "plot"))
    assert "needs PyTorch: " in str(MissingExtraError("`dymn train`", "torch"))


@pytest.mark.parametrize(
    ("words", "extras"),
    [
        ("train --data clips", "train"), ("probe clips -m mn04_as", "train"),
        ("explain dog.ogg -m dymn04_open", "torch,plot"), ("export dymn04_open", "torch,onnx"),
    ],
)  # fmt: skip
def test_without_pytorch_commands_that_need_it_name_all_extras_at_once(words, extras, tmp_path):
    (tmp_path / "clips" / "dog").mkdir(parents=True)
    (tmp_path / "dog.ogg").write_bytes((EXAMPLES / "dog.ogg").read_bytes())
    (tmp_path / "clips" / "dog" / "dog.ogg").write_bytes((EXAMPLES / "dog.ogg").read_bytes())
    code = "import sys\nsys.modules['torch'] = None\nfrom dymn.cli import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", code, *words.split()], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1, done.stderr
    assert re.search(rf"^dymn: .* needs .*: .*'dymn\[{extras}\]", done.stderr.splitlines()[-1]), done.stderr


def test_wrong_choices_are_named_in_our_words():
    done = subprocess.run(
        [sys.executable, "-m", "dymn", "tag", "x.wav", "--format", "yaml"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "'yaml' is not one of 'table'" in done.stderr and "Value error" not in done.stderr


def dymn_command(*words, **options):
    return subprocess.run([sys.executable, "-m", "dymn", *map(str, words)], capture_output=True, timeout=60, **options)


@pytest.mark.parametrize("command", ["tag", "embed"])
def test_a_hop_beyond_the_window_is_noted(command):
    words = [command, EXAMPLES / "dog.ogg", "--model", "dymn04_open", "--window", "2", "--hop"]
    done, usual = dymn_command(*words, "3"), dymn_command(*words, "2")
    assert done.returncode == usual.returncode == 0
    assert b"1 s between windows are not analysed" in done.stderr and not usual.stderr


@pytest.mark.parametrize("command", ["tag", "search", "explain", "review"])
def test_notes_advise_only_options_that_the_command_has(command, tmp_path):
    soundfile.write(tmp_path / "quiet.wav", 0.001 * np.random.default_rng(0).uniform(-1, 1, 16_000), 16_000)
    index, page = tmp_path / "index", tmp_path / "page.html"
    words = {
        "tag": ["tag", tmp_path / "quiet.wav", "--model", "dymn04_open"],
        "search": ["search", tmp_path / "quiet.wav", "--index", index],
        "explain": ["explain", tmp_path / "quiet.wav", "--model", "dymn04_open", "--output", page],
        "review": ["review", "dymn04_open", tmp_path / "quiet.wav", "--output", page],
    }[command]
    if command == "search":
        assert dymn_command("index", EXAMPLES / "dog.ogg", "--model", "dymn04_open", "--output", index).returncode == 0
    notes = dymn_command(*words).stderr
    assert b"it is quiet: its largest sample" in notes and (b"--gain auto" in notes) == (command == "tag"), notes


@pytest.mark.parametrize("command", ["tag", "explain"])
def test_errors_propose_only_options_that_the_command_has(command, tmp_path):
    soundfile.write(tmp_path / "cut.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 64_000), 16_000)
    data = (tmp_path / "cut.wav").read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[: len(data) // 2])
    more = ["--output", tmp_path / "x.html"] if command == "explain" else []
    done = dymn_command(command, tmp_path / "cut.wav", "--model", "dymn04_open", *more)
    assert done.returncode == 1 and b"Get a complete copy" in done.stderr and b"ffmpeg -i IN" in done.stderr
    assert (b"--partial" in done.stderr) == (command == "tag"), done.stderr


def test_an_empty_pipe_is_an_error():
    for more in ([], ["--max-lag", "1"]):
        done = dymn_command("listen", "-", "--rate", "16000", "--model", "dymn04_open", *more, input=b"")
        assert done.returncode == 1 and b"ended before it sent anything" in done.stderr


def test_a_checkpoint_that_is_missing_is_a_file_not_a_name(tmp_path):
    for words in (["tag", EXAMPLES / "dog.ogg"], ["evaluate", "--data", tmp_path], ["train", "--data", tmp_path]):
        given = [words[0], "nowhere.pt", *words[1:]] if words[0] == "evaluate" else [*words, "--model", "nowhere.pt"]
        done = dymn_command(*given)
        assert done.returncode != 0 and b"There is no file nowhere.pt." in done.stderr, done.stderr


def test_an_ending_of_another_format_of_export_names_the_format(tmp_path):
    done = dymn_command("export", "dymn04_open", "--output", tmp_path / "x.pt2")
    assert done.returncode == 2 and b"--format torch" in done.stderr and b".onnx" in done.stderr


def test_light_commands_import_nothing_heavy():
    for words in (["train", "--recipes"], ["--help"], ["models", "--pretrained"]):
        code = (
            "import sys\nfrom dymn.cli import main\ntry: main()\nfinally: print(sorted(sys.modules), file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0
        loaded = set(re.findall(r"'([^']+)'", done.stderr))
        heavy = {"torch", "soundfile", "av", "lightning", *(["numpy"] if words[0] != "models" else [])}
        assert not loaded & heavy, words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_can_be_shown(shell):
    shown = run(prog_name="dymn", env={"_DYMN_COMPLETE": f"source_{shell}"})
    assert shown.exit_code == 0
    assert f"_DYMN_COMPLETE=complete_{shell}" in shown.stdout
    assert "--install-completion" in run("--help").stdout
