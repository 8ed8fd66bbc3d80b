"""What the server answers while the model is being loaded: that it is starting."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from search.deployment.server.middleware import Limits, create_middleware

_TEMPLATES = Path(__file__).parent / "templates"
_RETRY = {"retry-after": "2"}


class Startup:
    """An application that says that it is starting until there is one to hand requests on to."""

    def __init__(self, limits: Limits, token: str | None, hosts: tuple[str, ...]) -> None:
        """Answer at once.

        Args:
            limits: Limits of requests.
            token: Token that requests need; None lets every client in.
            hosts: Names by which the server may be called; none allows all.
        """
        routes = [
            Route("/", _show_page),
            Route("/page.css", _show_style),
            Route("/healthz", _report_health),
            Route("/{path:path}", _refuse, methods=["GET", "HEAD", "POST"]),
        ]
        self._app: ASGIApp = Starlette(
            routes=routes, middleware=create_middleware(limits, token, hosts)
        )

    def become(self, app: ASGIApp) -> None:
        """Hand all requests on to an application from now on."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        await self._app(scope, receive, send)


async def _show_page(request: Request) -> Response:
    content = (_TEMPLATES / "starting.html").read_text(encoding="utf-8")
    return HTMLResponse(content, 503, _RETRY)


async def _show_style(request: Request) -> Response:
    return FileResponse(_TEMPLATES / "page.css", media_type="text/css")


async def _report_health(request: Request) -> Response:
    return JSONResponse({"status": "starting"}, 503, _RETRY)


async def _refuse(request: Request) -> Response:
    return JSONResponse({"detail": "the server is starting; try again soon"}, 503, _RETRY)
