"""Serve a finished run's model: a page for people, an HTTP interface for programs.

```
python -m search.serve results/caltech-1                          # http://127.0.0.1:8000
CLASSIFIER_TOKEN=… python -m search.serve results/caltech-1 --host 0.0.0.0
```
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING

from search.cluster.session import configure_ray, ray_session
from search.console.arguments import Parser, add_run, model_path, whole_number
from search.console.formatting import count, duration
from search.console.output import command, print_error
from search.console.run_log import TerminalHandler
from search.console.signals import FAILED, INTERRUPTED, GracefulShutdown
from search.runs.listing import find_run
from search.runs.validation import FolderError
from spaces.errors import SearchError

if TYPE_CHECKING:
    from search.deployment.server.service import Service

TOKEN_VARIABLE = "CLASSIFIER_TOKEN"  # noqa: S105 - a name, no token
_PORT_WAIT_SECONDS = 15.0
_GRACE = 5  # seconds to answer a request beyond its own limit
_END_SECONDS = 10.0  # beyond the requests under way, for Ray's processes
_CPU_BATCH, _GPU_BATCH = 8, 64  # larger ones do not fit into a CPU's caches
_NEEDED = {
    "uvicorn": "uvicorn",
    "fastapi": "fastapi",
    "multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
}
_TOKEN = re.compile(r"[A-Za-z0-9._~+/=-]{16,}")
"""A token that is long enough, and valid in a header."""
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")

_log = logging.getLogger("search.serve")  # under `python -m`, __name__ is "__main__"


class ServeError(SearchError):
    """The server cannot be started as requested."""


@command(continues=True)
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = create_parser().parse_args(arguments)
    if options.drain_seconds is None:
        options.drain_seconds = options.timeout + _GRACE
    try:
        options.run = find_run(options.run)
        listener = check(options)
    except (ServeError, FolderError) as error:
        print_error(error)
        return 2
    try:
        shutdown = GracefulShutdown(stop_seconds=options.drain_seconds + _END_SECONDS)
        with listener, shutdown.watching():
            return _serve(options, listener, shutdown)
    except KeyboardInterrupt:
        print("stopped before it was ready", file=sys.stderr)
        return INTERRUPTED


def check(options: argparse.Namespace) -> socket.socket:
    """Check what can be checked before PyTorch is loaded; return a socket bound to the port.

    Raises:
        ServeError: the request breaks a rule.
    """
    if options.token is None:
        options.token = os.environ.get(TOKEN_VARIABLE) or None
    needed = _NEEDED | ({"ray.serve": "ray[serve]"} if options.replicas > 1 else {})
    missing = [name for module, name in needed.items() if find_spec(module) is None]
    if missing:
        raise ServeError(
            f"serving needs {', '.join(missing)}: pip install 'classifier-search[serve]'"
        )
    if not model_path(options.run).is_file():
        raise ServeError(f"there is no model at {model_path(options.run)}")
    if options.token is None and not is_loopback(options.host):
        raise ServeError(
            f"--host {options.host} lets other machines in, which needs a --token (or"
            f" {TOKEN_VARIABLE} in the environment); omit --host to serve this machine alone"
        )
    if options.token is not None and not _TOKEN.fullmatch(options.token):
        raise ServeError(
            "a token must have at least 16 characters, letters, digits and -._~+/="
            " alone: python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        )
    return bind(options.host, options.port, _PORT_WAIT_SECONDS)


def is_loopback(host: str) -> bool:
    """Return whether an address can be reached from this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int, seconds: float) -> socket.socket:
    """Bind a socket; a port in use is tried again, as what a killed server leaves ends soon.

    Raises:
        ServeError: the port stays in use, or the address is not this machine's.
    """
    deadline = time.monotonic() + seconds
    while True:
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                time.sleep(0.2)
                continue
            raise ServeError(
                f"cannot listen on {host}:{port}: {error.strerror or error}; give another --port"
                " or --host"
            ) from None
        return listener


def _serve(options: argparse.Namespace, listener: socket.socket, shutdown: GracefulShutdown) -> int:
    """Load the model and serve it until a stop is requested; return the exit code.

    The server listens before PyTorch is imported, and says that it is starting.
    """
    from search.deployment.server.listening import Listening
    from search.deployment.server.middleware import Limits
    from search.deployment.server.starting import Startup

    started = time.monotonic()
    limits = Limits(
        body_bytes=options.max_megabytes * 2**20,
        pixels=options.max_megapixels * 1_000_000,
        images=options.max_images,
        seconds=float(options.timeout),
        requests=options.queue,
    )
    # Without a token, a web page could point a name of its own to this machine and read along.
    hosts = _LOOPBACK_NAMES if options.token is None else ()
    startup = Startup(limits, options.token, hosts)
    _log_to_terminal()
    with Listening(startup, listener, limits.seconds, options.drain_seconds) as listening:
        from search.deployment.server.app import build_app
        from search.deployment.server.schemas import describe_model
        from trainables.models.model_card import ModelError

        try:
            with _service(options, shutdown) as service:
                info = describe_model(options.run, service.card)
                startup.become(build_app(service, info, limits, options.token, hosts))
                _wait_for_stop(options, shutdown, listening.is_running)
                listening.stop()  # before the replicas that it hands images to
        except ModelError as error:
            print_error(error)
            return 2
    if not shutdown.requested():
        print_error("the server stopped by itself; its log says why")
        return FAILED
    _log.info("stopped after %s", duration(time.monotonic() - started))
    return 0


@contextmanager
def _service(options: argparse.Namespace, shutdown: GracefulShutdown) -> Iterator[Service]:
    """Load the model, here or in replicas.

    Raises:
        ModelError: it is damaged.
    """
    import torch

    from search.deployment.server.replicas import ReplicaSettings, load_service, running_replicas
    from trainables.models.model import load_model

    settings = ReplicaSettings(
        model=options.run.absolute(),
        pixels=options.max_megapixels * 1_000_000,
        batch_size=options.batch or (_GPU_BATCH if torch.cuda.is_available() else _CPU_BATCH),
        threads=max(1, (os.cpu_count() or 1) // options.replicas),
    )
    if options.replicas == 1:
        yield load_service(settings)
        return
    card = load_model(model_path(options.run)).card  # here, a damaged file is one clear error
    configure_ray()
    with ray_session(None, show_worker_output=True):
        shutdown.watch()
        with running_replicas(settings, card, options.replicas, options.drain_seconds) as service:
            yield service


def _wait_for_stop(
    options: argparse.Namespace, shutdown: GracefulShutdown, is_serving: Callable[[], bool]
) -> None:
    """Report that the server is ready; return once a stop is requested, or it serves no more."""
    host = f"[{options.host}]" if ":" in options.host else options.host
    url = f"http://{host}:{options.port}"
    _log.info("serving %s at %s by %s", options.run, url, count(options.replicas, "replica"))
    print(f"ready: {url}  (Ctrl-C stops)", flush=True)  # programs wait for this line
    with suppress(KeyboardInterrupt), shutdown.deferring():
        while is_serving() and not shutdown.requested():
            time.sleep(0.2)


def _log_to_terminal() -> None:
    """Show what the server logs, and warnings of libraries, on the error output."""
    style = "%(asctime)s %(levelname)s %(name)s %(message)s"
    logging.basicConfig(format=style, handlers=[TerminalHandler()])
    logging.getLogger("search").setLevel(logging.INFO)


def create_parser() -> Parser:
    """Return the parser of `python -m search.serve`."""
    parser = Parser(
        prog="python -m search.serve",
        description="""\
Serve a finished run's model over HTTP: a page where images can be tried, and POST /predict for
programs, described at /docs. Without --host, this machine alone can reach it.""",
        epilog="""\
examples:
  python -m search.serve results/RUN
  CLASSIFIER_TOKEN=... python -m search.serve results/RUN --host 0.0.0.0 --port 8080""",
    )
    add_run(parser)
    where = parser.add_argument_group("address")
    where.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    where.add_argument(
        "--port",
        type=whole_number(1, 65535),
        default=8000,
        help="port to listen on (default: %(default)s)",
    )
    where.add_argument(
        "--token",
        help=f"token that requests need; better in {TOKEN_VARIABLE}, as lists of processes show"
        " the command line",
    )
    how = parser.add_argument_group("processes")
    how.add_argument(
        "--replicas",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="processes that share the requests, and the GPUs (default: %(default)s)",
    )
    how.add_argument(
        "--batch",
        type=whole_number(1),
        metavar="N",
        help=f"images in a batch, at most (default: {_CPU_BATCH}; with GPUs {_GPU_BATCH})",
    )
    limits = parser.add_argument_group("limits")
    for name, default, unit, what in (
        ("--max-megabytes", 32, "N", "megabytes of a request's body"),
        ("--max-megapixels", 50, "N", "million pixels of an image"),
        ("--max-images", 32, "N", "images in a request"),
        ("--timeout", 30, "SECONDS", "time for a request to arrive and be answered"),
        ("--queue", 256, "N", "requests in parallel; others get 429"),
    ):
        limits.add_argument(
            name,
            type=whole_number(1),
            default=default,
            metavar=unit,
            help=f"{what} (default: %(default)s)",
        )
    limits.add_argument(
        "--drain-seconds",
        type=whole_number(0),
        metavar="SECONDS",
        help=f"time for requests under way after Ctrl-C or SIGTERM (default: --timeout + {_GRACE})",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
