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
import socket
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from search.console.arguments import Parser, add_run, model_path, whole_number
from search.console.signals import INTERRUPTED, GracefulShutdown

TOKEN_VARIABLE = "CLASSIFIER_TOKEN"  # noqa: S105 - a name, no token
_MIN_TOKEN = 16
_PORT_WAIT_SECONDS = 15.0
_CPU_BATCH, _GPU_BATCH = 8, 64  # larger ones fall out of a CPU's caches
_NEEDED = {"fastapi": "fastapi", "multipart": "python-multipart"}
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "[::1]")


class ServeError(ValueError):
    """The server cannot be started as asked."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        check(options)
    except ServeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        with GracefulShutdown().watching() as shutdown:
            return _serve(options, shutdown)
    except KeyboardInterrupt:
        print("stopped before it was ready", file=sys.stderr)
        return INTERRUPTED


def check(options: argparse.Namespace) -> None:
    """Check what can be checked before PyTorch and Ray are loaded.

    Raises:
        ServeError: the request breaks a rule.
    """
    if options.token is None:
        options.token = os.environ.get(TOKEN_VARIABLE) or None
    lacking = [name for module, name in _NEEDED.items() if find_spec(module) is None]
    if lacking:
        raise ServeError(
            f"serving needs {', '.join(lacking)}: pip install 'classifier-search[serve]'"
        )
    if not model_path(options.run).is_file():
        raise ServeError(f"there is no model at {model_path(options.run)}")
    if options.token is None and not is_loopback(options.host):
        raise ServeError(
            f"--host {options.host} lets other machines in, which needs a --token (or"
            f" {TOKEN_VARIABLE} in the environment); leave --host out to serve this machine alone"
        )
    if options.token is not None and not _is_usable(options.token):
        raise ServeError(
            f"a token must have at least {_MIN_TOKEN} characters, letters, digits and -._~+/="
            " alone: python -c 'import secrets; print(secrets.token_urlsafe())' makes one"
        )
    wait_for_port(options.host, options.port)


def is_loopback(host: str) -> bool:
    """Tell whether only this machine itself can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def wait_for_port(host: str, port: int, seconds: float = _PORT_WAIT_SECONDS) -> None:
    """Wait until a port is free: what a killed server leaves takes a moment to end.

    Raises:
        ServeError: something else listens there, or the address is not this machine's.
    """
    deadline = time.monotonic() + seconds
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno == errno.EADDRINUSE and time.monotonic() < deadline:
                    time.sleep(0.2)
                    continue
                raise ServeError(
                    f"cannot listen on {host}:{port}: {error.strerror or error};"
                    " give another --port or --host"
                ) from None
            return


def _serve(options: argparse.Namespace, shutdown: GracefulShutdown) -> int:
    """Start Ray while the model is read once to see that it is one; then serve until asked."""
    os.environ.update(_serve_settings(options))
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(_read_model, options.run)
        # Ray must start in the main thread: its processes end with the thread that started them.
        from search.cluster.session import configure_ray, ray_session

        configure_ray()

        with ray_session(None):
            problem = reading.result()
            if problem:
                print(f"error: {problem}", file=sys.stderr)
                return 2
            # Once more: Ray puts its own handler of SIGTERM in the place of ours.
            with shutdown.watching():
                _run(options, shutdown)
    return 0


def listens_itself(options: argparse.Namespace) -> bool:
    """Tell whether the replica takes requests itself, instead of Serve's proxy before it.

    The proxy, a process that hands every request on, costs 9 ms of CPU time for each, its part in
    the replica included; SqueezeNet 1.0 takes 11. Several replicas need it: each would have a port
    of its own. It listens all the same, at some free port of the host: harmless on loopback, but
    for other machines that would be a second way in.
    """
    return bool(options.replicas == 1 and is_loopback(options.host))


def _serve_settings(options: argparse.Namespace) -> dict[str, str]:
    """Return the variables that Serve reads in all of Ray's processes."""
    return {
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "search.deployment.middleware.before_serve",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1" if listens_itself(options) else "0",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(options.port),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(options.port + 1),  # the first one beyond
        # No load balancer stands before it, to be told first that it ends; and a replica that
        # died leaves its port to the next at once.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_PORT_QUARANTINE_S": "0",
    }


def _read_model(run: Path) -> str | None:
    """Return what is wrong with a model; None if it is sound."""
    from trainables.models.ensemble import ModelError, load_model

    try:
        load_model(model_path(run))
    except ModelError as error:
        return str(error)
    return None


def _run(options: argparse.Namespace, shutdown: GracefulShutdown) -> None:
    import ray
    from ray import serve

    from search.deployment.middleware import Limits
    from search.deployment.replica import Setup, create_application

    limits = Limits(
        body_bytes=options.max_megabytes * 2**20,
        pixels=options.max_megapixels * 1_000_000,
        images=options.max_images,
        seconds=float(options.timeout),
        requests=options.queue,
    )
    # Without a token, other names for this machine are refused: a page from elsewhere could have
    # its own name lead here, and read what is meant for this machine alone.
    hosts = _LOOPBACK_NAMES if options.token is None else ()
    threads = max(1, (os.cpu_count() or 1) // options.replicas)
    n_gpus = ray.cluster_resources().get("GPU", 0.0)
    batch = options.batch or (_GPU_BATCH if n_gpus else _CPU_BATCH)
    setup = Setup(options.run.absolute(), limits, options.token, hosts, batch, threads)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = {"log_level": "ERROR", "enable_access_log": False}
    serve.start(
        proxy_location="HeadOnly",
        http_options={
            "host": options.host,
            "port": 0 if listens_itself(options) else options.port,
            "request_timeout_s": limits.seconds + 5,
        },
        logging_config=quiet,
    )
    application = create_application(setup, options.replicas, n_gpus)
    serve.run(application, name="classifier", route_prefix="/", logging_config=quiet)
    host = f"[{options.host}]" if ":" in options.host else options.host
    print(f"ready: http://{host}:{options.port}  (Ctrl-C stops)", flush=True)
    try:
        with shutdown.deferring():
            while not shutdown.requested():
                time.sleep(0.2)
    except KeyboardInterrupt:
        _delete(limits.seconds)  # the rest ends with Ray
        print("stopped", file=sys.stderr)


def _delete(seconds: float) -> None:
    """Take no more requests, and wait for those that are being worked on."""
    from ray import serve

    deadline = time.monotonic() + seconds + 10
    while time.monotonic() < deadline:
        with suppress(TimeoutError):  # it waits a minute at most; a request may take longer
            serve.delete("classifier")
            return


def _is_usable(token: str) -> bool:
    """Tell whether a token is long enough, and can stand in a header."""
    allowed = set("-._~+/=")
    return len(token) >= _MIN_TOKEN and all(
        c in allowed or (c.isascii() and c.isalnum()) for c in token
    )


def _parser() -> Parser:
    parser = Parser(
        prog="python -m search.serve",
        description="Serve a model: a page, and an HTTP interface (POST /predict; see /docs).",
    )
    add_run(parser)
    where = parser.add_argument_group("where")
    where.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    where.add_argument("--port", type=whole_number(1), default=8000, help="default: %(default)s")
    where.add_argument(
        "--token",
        help=f"that predictions ask for; better in {TOKEN_VARIABLE}, where no list of processes"
        " shows it",
    )
    how = parser.add_argument_group("how")
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
        help=f"images computed together at most (default: {_CPU_BATCH}; with GPUs {_GPU_BATCH})",
    )
    limits = parser.add_argument_group("limits")
    for name, default, unit, what in (
        ("--max-megabytes", 32, "N", "of a request's body"),
        ("--max-megapixels", 50, "N", "of an image, millions"),
        ("--max-images", 32, "N", "of a request"),
        ("--timeout", 30, "SECONDS", "for a request to arrive and be answered"),
        ("--queue", 256, "N", "requests a replica works on at a time; others get 429"),
    ):
        limits.add_argument(
            name,
            type=whole_number(1),
            default=default,
            metavar=unit,
            help=f"{what} (default: %(default)s)",
        )
    return parser


if __name__ == "__main__":
    sys.exit(main())
