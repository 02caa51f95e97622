"""The command `dymn`: it parses, calls one library function, and formats the answer.

A command is a function in `dymn.commands`, made known by one line at the end of this file. Commands import what is heavy when
they run, so that `dymn --help` is quick.
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
from dymn.commands.convert import convert
from dymn.commands.embed import embed
from dymn.commands.evaluate import evaluate
from dymn.commands.events import events
from dymn.commands.explain import explain
from dymn.commands.export import export
from dymn.commands.listen import listen
from dymn.commands.models import models
from dymn.commands.probe import probe
from dymn.commands.profile import profile
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

EPILOG = (
    "Exit codes: 0 when all went well; 1 when something failed, such as one of several files (the others are still done); "
    "2 for wrong use; 130 when interrupted, 143 when terminated. Set DYMN_DEBUG=1 to see where in the program an error arose."
)


class Visible(logging.Formatter):
    """Writes what is logged, in which there may be names that strangers chose, so that a terminal takes nothing for a command."""

    def format(self, record: logging.LogRecord) -> str:
        """Return a record as text."""
        return visible(super().format(record), keep="\n\t")


class Boundary(TyperGroup):
    """Where errors end: a message on standard error and an exit code, never a traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command and turn what it raises into an exit code."""
        if os.environ.get("DYMN_DEBUG"):
            return super().invoke(ctx)
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, (typer.Exit, typer.Abort)) or hasattr(error, "show"):  # typer's own ways to end, and wrong use
                raise
            message, code = _outcome(error)
            if code == EXIT_BROKEN_PIPE:
                _silence_stdout()
            else:
                typer.echo(f"dymn: {message}", err=True)
        # Not within `except`: with the error goes what its traceback holds, such as threads that Python could not end while they compute.
        raise typer.Exit(code)


def _outcome(error: BaseException) -> tuple[str, int]:
    """Return what to say of an error, and the exit code."""
    if (end := ended(error)) is not None:
        return end.words, end.exit_code
    if isinstance(error, DymnError):
        return str(error), EXIT_WRONG_USE if isinstance(error, ConfigError) else EXIT_FAILED
    if isinstance(error, BrokenPipeError):
        return "", EXIT_BROKEN_PIPE
    if isinstance(error, OSError):
        what = f"{error.filename}: {error.strerror}" if error.filename and error.strerror else str(error)
        return f"{visible(what)}. Check the path, its permissions, and the room on the disk.", EXIT_FAILED
    if (known := resource_error(error) or without_torch(error, "This command")) is not None:
        return str(known), EXIT_FAILED
    what = f"{type(error).__name__}: {visible(str(error))}"
    return f"This should not have happened: {what}\nSet DYMN_DEBUG=1 to see where, and please report it.", EXIT_FAILED


def _silence_stdout() -> None:
    """Send what is still to be written nowhere, because nobody reads it any more."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    cls=Boundary,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"dymn {__version__}")
        raise typer.Exit


@app.callback()
def dymn(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.", show_default=False)
    ] = False,
) -> None:
    """Tag sounds with efficient pre-trained networks (DyMN and MobileNet)."""
    logging.basicConfig(level=logging.WARNING, format="dymn: %(message)s", stream=sys.stderr)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(Visible("dymn: %(message)s"))


app.command()(tag)
app.command()(events)
app.command()(listen)
app.command()(embed)
app.command()(models)
app.command()(convert)
app.command()(export)
app.command()(profile)
app.command()(train)
app.command()(evaluate)
app.command(cls=ManyModels)(teach)
app.command()(shards)
app.command()(probe)
app.command()(explain)
app.command()(serve)


def main() -> None:
    """Run the command line."""
    calm_openmp()
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        app()
    finally:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _silence_stdout()
        except OSError as error:
            _silence_stdout()
            typer.echo(f"dymn: Standard output cannot be written to: {error.strerror}.", err=True)
            sys.exit(EXIT_FAILED)
