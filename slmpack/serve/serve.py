"""Serve: load versions, listen, and answer until a signal; then finish what is under way."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path

from slmpack.errors import HardwareError, UsageError
from slmpack.machine.process_tree import kill_tree
from slmpack.serve.engine import Started, start_engine
from slmpack.serve.follow import follow
from slmpack.serve.keys import Keys
from slmpack.serve.locate import Located, locate
from slmpack.serve.models import Models
from slmpack.serve.options import ServeOptions
from slmpack.serve.served_model import ServedModel, engine_log, start_model
from slmpack.serve.tracing import Tracer

logger = logging.getLogger(__name__)

WAITING_CLIENTS = 512  # until the server takes them

Say = Callable[[str], None]


def serve(uris: Sequence[str], options: ServeOptions, workspace: Path, tell: Say, listens: Say) -> None:
    """Answer requests for the models of `uris` until SIGINT or SIGTERM.

    Args:
        workspace: where the logs of the processes that compute go.
        tell: takes lines for a person: what is served, and where.
        listens: takes the address, `http://HOST:PORT`, once a client can connect.

    Raises:
        UsageError: an option cannot be right.
        SourceError: there is no such model, or it cannot be served.
        TrustError: its code is not slmpack's.
        HardwareError: the port is taken, memory is short, or a process does not start.
    """
    require_key_outside(options)
    if options.trace_texts and options.trace is None:
        raise UsageError("--trace-texts without --trace", "the experiment that is traced to", "add --trace EXPERIMENT")
    keys = None if options.api_key_file is None else Keys.read(options.api_key_file)
    with _listening(options) as listener:
        wanted = list(dict.fromkeys(uris))
        started = [start_engine(engine_log(workspace)) for _ in wanted]  # they import while the models are found
        try:
            located = [locate(uri, trust_code=options.trust_code) for uri in wanted]
            versions = list(zip(located, started, strict=True))
            asyncio.run(_serve(versions, options, workspace, keys, listener, tell, listens))
        finally:
            for each in started:
                if each.process.poll() is None:
                    kill_tree(each.process.pid)


def require_key_outside(options: ServeOptions) -> None:
    """Refuse to listen where others can reach it without a key.

    Raises:
        UsageError: there is none, and nobody said that it is meant so.
    """
    if options.api_key_file is not None or options.without_key or is_loopback(options.host):
        return
    raise UsageError(
        f"--host {options.host} can be reached from other machines",
        "a key that requests must have",
        "give --api-key-file FILE, or say --without-key",
    )


def is_loopback(host: str) -> bool:
    """Say whether only this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def _listening(options: ServeOptions) -> Iterator[socket.socket]:
    """Give the socket; a port that is taken is found before anything is loaded."""
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((options.host, options.port))
        except OSError as error:
            raise _not_taken(options, error) from error
        yield listener


def _not_taken(options: ServeOptions, error: OSError) -> HardwareError:
    """Return why the server cannot listen: because of its address, or of its port."""
    reason = error.strerror or str(error)
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        return HardwareError(
            f"--host {options.host} cannot be listened at ({reason})",
            "an address of this machine",
            "use 0.0.0.0 for all of them, or 127.0.0.1 for none that others reach",
        )
    return HardwareError(
        f"port {options.port} of {options.host} cannot be taken ({reason})",
        "one that is free",
        "name another with --port; 0 takes a free one",
    )


async def _serve(
    versions: Sequence[tuple[Located, Started]],
    options: ServeOptions,
    workspace: Path,
    keys: Keys | None,
    listener: socket.socket,
    tell: Say,
    listens: Say,
) -> None:
    models = Models()
    tracer = None if options.trace is None else Tracer(options.trace, texts=options.trace_texts)
    try:
        starts = [asyncio.create_task(start_model(each, options, workspace, process)) for each, process in versions]
        # While the models are loaded elsewhere.
        app, stopping = [
            await asyncio.to_thread(import_module, f"slmpack.serve.{name}") for name in ("app", "stopping")
        ]
        for start in starts:
            models.put(await start)
        for model in models.all():
            tell(_line_of(model))
        address = _listen(listener)
        tell(f"listening at {address}/v1 (Ctrl-C stops)")
        listens(address)
        server = stopping.make_server(app.make_app(models, options, keys, tracer), options, models.cut_off)
        followers = [asyncio.create_task(follow(each.uri, models, options, workspace)) for each, _ in versions
                     if options.follow and each.alias]  # fmt: skip
        try:
            with contextlib.suppress(KeyboardInterrupt):  # uvicorn passes its signal on when it has stopped
                await server.serve(sockets=[listener])
        finally:
            for task in followers:
                task.cancel()
    finally:
        if tracer is not None:
            await asyncio.to_thread(tracer.stop)
        await asyncio.gather(*(model.engine.stop() for model in models.all()))


def _listen(listener: socket.socket) -> str:
    """Let clients connect, so that who gets the address can do so at once, and return it."""
    listener.listen(WAITING_CLIENTS)
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _line_of(model: ServedModel) -> str:
    """Return what a person wants to know of a served version."""
    opened = model.engine.opened
    together = "together" if opened is not None and opened.together else "in turn"
    version = "" if model.located.version is None else f", version {model.located.version}"
    proved = "" if model.located.proved else ", not proved"
    return (
        f"{model.label}{version}{proved}: {model.slots} answers at a time, {together}; {model.context} tokens each; "
        f"at most {model.kv_bytes / 1e6:,.0f} MB for keys and values; {model.threads} threads"
    )
