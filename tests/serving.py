"""The server's application at work in this process: on 127.0.0.1, without Ray."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image

from search.limits import Limits
from search.predictor import Predictor

uvicorn = pytest.importorskip("uvicorn", reason="needs the extra: serve")


@contextmanager
def serving(predictor: Predictor, limits: Limits, token: str | None = None) -> Iterator[str]:
    """Serve a model in a thread; yield the address, which ends in no slash."""
    from search.service import Service
    from search.web import build_app

    before = Image.MAX_IMAGE_PIXELS
    app = build_app(Service(predictor, limits.pixels, 8), limits, token, ("127.0.0.1",))
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        Image.MAX_IMAGE_PIXELS = before
