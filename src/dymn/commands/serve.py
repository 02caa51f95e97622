"""`dymn serve`: the page and the HTTP service."""

from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dymn.commands import options
from dymn.commands.label_options import GroupsFile, Level, vocabulary
from dymn.commands.options import RUN_PANEL, file_option, hush, model_option, note, number_option, seconds_option
from dymn.commands.recordings import load_tagger
from dymn.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from dymn.inference.tagger import Tagger

ACCESS, LIMITS = "Access", "Limits"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
TOKEN_VARIABLE = "DYMN_SERVE_TOKEN"


def serve(
    model: Annotated[
        list[str] | None,
        model_option("A model, as in `dymn tag`. The option can be repeated; the first model is the default."),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="The address to listen on. To accept connections from other machines, use an address such as 0.0.0.0.",
            rich_help_panel=ACCESS,
        ),
    ] = "127.0.0.1",
    port: Annotated[int, number_option("The port; 0 selects a free one.", ACCESS, least=0, most=65535)] = 8000,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A host name of the server, such as sounds.example.org; requests for other names are rejected. Can "
            "be repeated. The default is the names of this machine and any IP address.",
            rich_help_panel=ACCESS,
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        file_option(
            f"A file with the token that clients must send. Alternatively, set the variable {TOKEN_VARIABLE}.", ACCESS
        ),
    ] = None,
    page: Annotated[
        bool, typer.Option("--page/--no-page", help="Also serve the web page at /.", rich_help_panel=ACCESS)
    ] = True,
    level: Level = None,
    groups: GroupsFile = None,
    queue: Annotated[
        int, number_option("Number of requests that may wait; more are rejected with status 503.", LIMITS, least=0)
    ] = 16,
    live: Annotated[int, number_option("Maximum number of live connections.", LIMITS, least=0)] = 4,
    max_size: Annotated[
        float, typer.Option(min=0.001, metavar="MIB", help="Maximum size of a request's body.", rich_help_panel=LIMITS)
    ] = 64,
    max_seconds: Annotated[float, seconds_option("Maximum length of a recording.", LIMITS, least=0.1, most=None)] = 600,
    timeout: Annotated[
        float, seconds_option("Maximum time for a request after it has arrived.", LIMITS, least=0.1, most=None)
    ] = 60,
    workers: Annotated[
        int | None,
        number_option("Number of requests to decode at once. The default is the number of CPUs plus one.", RUN_PANEL),
    ] = None,
    batch_size: options.WindowBatch = None,
    batch_wait: Annotated[
        float,
        typer.Option(
            min=0,
            max=1000,
            metavar="MS",
            help="How long a window waits for windows of other requests.",
            rich_help_panel=RUN_PANEL,
        ),
    ] = 5,
    backend: options.BackendOption = "auto",
    device: options.Device = None,
    precision: options.PrecisionOption = "float32",
    threads: options.Threads = None,
    quiet: options.Quiet = False,
) -> None:
    """Run an HTTP service, with a web page, that reports which sounds recordings contain.

    The web page at / tags files and the microphone in the browser itself. Programs send recordings to /v1/tag;
    /openapi.json describes the interface.

    Only this machine can connect, unless --host is given. Ctrl-C or SIGTERM stops the server after the accepted
    requests are answered.

    Examples: `dymn serve --model dymn04_open`; `dymn serve --host 0.0.0.0 --allow-host sounds.example.org --token-file
    token.txt`.
    """
    try:
        import prometheus_client  # noqa: F401
        import uvicorn

        from dymn.serve.app import create_app
        from dymn.serve.connections import BoundedConnection
    except ImportError as error:
        if (error.name or "").startswith("dymn"):
            raise
        raise MissingExtraError("`dymn serve`", "serve") from error
    from dymn.serve.settings import ServeSettings
    from dymn.system.cpus import available_cpus

    hush(quiet)
    words = vocabulary(level, groups)
    local = host in LOOPBACK
    settings = ServeSettings(
        batch_size=batch_size,
        batch_wait=batch_wait / 1000,
        workers=workers or available_cpus() + 1,
        queue=queue,
        live=live,
        max_bytes=round(max_size * 2**20),
        max_seconds=max_seconds,
        timeout=timeout,
        allowed_hosts=tuple(name.lower() for name in host_names(host, allow_host or [])),
        allow_addresses=not local and not allow_host,
        token=read_token(token_file),
    )
    if not local:
        protection = "" if settings.token else f" No token is required: set {TOKEN_VARIABLE}."
        typer.echo(
            f"dymn: Listening on {host}, which other machines can reach, without encryption.{protection}", err=True
        )
    listener = bind(host, port)
    taggers = load_taggers(model or [], device, threads, quiet, backend, precision)
    app = create_app({name: words.of(tagger) for name, tagger in taggers.items()}, settings, page)
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        http=BoundedConnection,
        ws_max_size=2**20,
        ws_per_message_deflate=False,
        limit_concurrency=1000,
        timeout_graceful_shutdown=round(timeout + 5),
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)  # uvicorn raises it again after its shutdown
    shown = f"[{host}]" if ":" in host else host
    typer.echo(f"Listening on http://{shown}:{listener.getsockname()[1]} (press Ctrl-C to stop)")
    uvicorn.Server(config).run(sockets=[listener])


def host_names(host: str, allowed: list[str]) -> list[str]:
    """Return the host names under which the server may be reached: the allowed ones, or those of this machine."""
    if host in LOOPBACK:
        return ["127.0.0.1", "localhost", "[::1]", *allowed]
    own = socket.gethostname()
    return allowed or ["localhost", own, f"{own}.local", host]


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket, before any model is loaded; raise a ConfigError if that is not possible."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"Cannot listen on {host}, port {port}: {reason}. Give another --port or --host; --port 0 selects a free "
            "port."
        ) from error


def read_token(path: Path | None) -> str:
    """Return the token from a file, or from the environment; "" if there is none. An empty file is a ConfigError."""
    if path is None:
        return os.environ.get(TOKEN_VARIABLE, "").strip()
    token = path.read_text(encoding="utf-8", errors="replace").strip()
    if not token:
        raise ConfigError(f"{path} is empty. Write a token to it, such as that of `openssl rand -hex 32`.")
    return token


def load_taggers(
    models: list[str],
    device: str | None,
    threads: int | None,
    quiet: bool,
    backend: options.Computes,
    precision: options.Precisions,
) -> dict[str, Tagger]:
    """Load the models, and return their taggers by the names of their cards."""
    taggers: dict[str, Tagger] = {}
    for model in models or [None]:  # type: ignore[list-item]
        tagger = load_tagger(model, device, threads, quiet, backend, precision)
        name = tagger.card.name or Path(model or "").stem or "model"
        if name in taggers:
            note(f"{model} has the same name, {name}, as an earlier model and is left out.", quiet)
        taggers.setdefault(name, tagger)
    return taggers
