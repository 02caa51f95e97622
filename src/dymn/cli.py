"""The command `dymn`: it parses arguments, calls one library function, and formats the result.

A command is a function in `dymn.commands`, in the list at the end of this file. Commands import heavy modules when they
run, so that `dymn --help` is fast.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from dymn import __version__
from dymn.commands.calibrate import calibrate
from dymn.commands.convert import convert
from dymn.commands.embed import embed
from dymn.commands.evaluate import evaluate
from dymn.commands.events import events
from dymn.commands.explain import explain
from dymn.commands.export import export
from dymn.commands.fit import fit
from dymn.commands.index import index
from dymn.commands.listen import listen
from dymn.commands.map import map
from dymn.commands.models import models
from dymn.commands.options import Command
from dymn.commands.output import STDOUT_ERRORS, open_closed_streams, silence_stdout
from dymn.commands.probe import probe
from dymn.commands.profile import profile
from dymn.commands.review import review
from dymn.commands.search import search
from dymn.commands.serve import serve
from dymn.commands.shards import shards
from dymn.commands.tag import tag
from dymn.commands.teach import ManyModels, teach
from dymn.commands.train import train
from dymn.errors import ConfigError, DymnError, resource_error, visible, without_torch
from dymn.system.cpus import calm_openmp, keep_freed_memory
from dymn.system.signals import ended

EXIT_FAILED = 1
EXIT_WRONG_USE = 2
EXIT_BROKEN_PIPE = 141
EXTRAS = {
    **dict.fromkeys(("train", "evaluate", "probe", "teach"), "train"),
    "export": "torch,onnx",
    "fit": "torch,fit",
    "explain": "torch,plot",
}
"""The extras of commands that need more than PyTorch, so that one installation is enough."""

EPILOG = (
    "Exit codes: 0 for success; 1 if something failed, such as one of several files (the others are still "
    "processed); 2 for incorrect usage; 130 when interrupted, 143 when terminated. DYMN_DEBUG=1 shows the traceback "
    "of an error. Example: `dymn tag street.wav --model dymn04_open`."
)


class Visible(logging.Formatter):
    """Escapes control characters in log messages, which may hold names from files that others wrote."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text."""
        return visible(super().format(record), keep="\n\t")


class Boundary(TyperGroup):
    """Where errors end: a message on standard error and an exit code, never a traceback."""

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line and exit; wrong use, too, is a message that begins with `dymn:`."""
        if not extra.get("standalone_mode", True) or os.environ.get("DYMN_DEBUG"):
            return super().main(*args, **extra)
        try:
            code = super().main(*args, **extra | {"standalone_mode": False})
        except Exception as error:
            code = _wrong_use(error) if hasattr(error, "show") else _ended(error)
        sys.exit(code or 0)

    def invoke(self, ctx: Any) -> Any:
        """Run a command and turn what it raises into an exit code."""
        if os.environ.get("DYMN_DEBUG"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, (typer.Exit, typer.Abort)) or hasattr(error, "show"):  # typer's own, and wrong use
                raise
            code = _ended(error, ctx.invoked_subcommand)
        # Not within `except`: with the error goes what its traceback holds, such as threads that Python cannot end
        # while they compute.
        raise typer.Exit(code)


def _wrong_use(error: Any) -> int:
    """Write the message of one of typer's errors, and return its exit code."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        context = getattr(error, "ctx", None)
        hint = f" See `{context.command_path} --help`." if context is not None else ""
        message = visible(error.format_message()).strip().replace("Value error, ", "", 1)  # pydantic's words
        typer.echo(f"dymn: {message}{'' if message.endswith(('.', '?')) else '.'}{hint}", err=True)
    return int(getattr(error, "exit_code", EXIT_FAILED))


def _ended(error: BaseException, command: str | None = None) -> int:
    """Write what an error means, and return the exit code."""
    message, code = _outcome(error, command)
    if isinstance(error, OSError) and not error.filename:
        silence_stdout()
    if code != EXIT_BROKEN_PIPE:
        typer.echo(f"dymn: {message}", err=True)
    return code


def _outcome(error: BaseException, command: str | None = None) -> tuple[str, int]:
    """Return the message of an error, and the exit code."""
    if (end := ended(error)) is not None:
        return end.words, end.exit_code
    if isinstance(error, DymnError):
        return str(error), EXIT_WRONG_USE if isinstance(error, ConfigError) else EXIT_FAILED
    if isinstance(error, BrokenPipeError):
        return "", EXIT_BROKEN_PIPE
    if isinstance(error, OSError):
        if not error.filename and error.errno in STDOUT_ERRORS:
            return f"Standard output cannot be written to: {error.strerror}.", EXIT_FAILED
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return f"{visible(what)}. Check the path, its permissions, and the free space on the disk.", EXIT_FAILED
    purpose = f"`dymn {command}`" if command else "This command"
    if (
        known := resource_error(error) or without_torch(error, purpose, EXTRAS.get(command or "", "torch"))
    ) is not None:
        return str(known), EXIT_FAILED
    what = f"{type(error).__name__}: {visible(str(error))}"
    return (
        f"This is a bug in dymn: {what}\nSet DYMN_DEBUG=1 to see the traceback, and please report it.",
        EXIT_FAILED,
    )


app = typer.Typer(
    cls=Boundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


def _print_version(requested: bool) -> None:
    if requested:
        typer.echo(f"dymn {__version__}")
        raise typer.Exit


@app.callback()
def dymn(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit.", show_default=False
        ),
    ] = False,
) -> None:
    """Tag sounds with efficient pre-trained networks (DyMN and MobileNet)."""
    logging.basicConfig(level=logging.WARNING, format="dymn: %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Visible("dymn: %(message)s"))


for function in (
    tag,
    events,
    listen,
    embed,
    index,
    search,
    map,
    models,
    convert,
    export,
    profile,
    fit,
    review,
    calibrate,
    train,
    evaluate,
    teach,
    shards,
    probe,
    explain,
    serve,
):
    app.command(cls=ManyModels if function is teach else Command)(function)


def main() -> None:
    """Run the command line."""
    calm_openmp()
    keep_freed_memory()
    open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        app()
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # how typer and rich end
            sys.exit(EXIT_BROKEN_PIPE)
        if (code := flush_stdout()) and not end.code:
            sys.exit(code)
        raise


def flush_stdout() -> int:
    """Flush standard output, and return the exit code that follows."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence_stdout()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        silence_stdout()
        typer.echo(f"dymn: Standard output cannot be written to: {error.strerror}.", err=True)
        return EXIT_FAILED
    return 0
