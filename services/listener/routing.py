"""Finds the handler of a request: fixed paths in a table, everything else through Starlette's router."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from starlette.routing import BaseRoute, Match, Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send


class Dispatcher:
    """An ASGI application that answers as `Router(routes)` does, sooner where the path is fixed."""

    def __init__(self, routes: Sequence[BaseRoute]) -> None:
        self._router = Router(routes, redirect_slashes=False)
        self._fixed = dict(_fixed(routes))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        app = self._fixed.get((scope["path"], scope["method"]), self._router)
        await app(scope, receive, send)


def _fixed(routes: Sequence[BaseRoute]) -> Iterator[tuple[tuple[str, str], ASGIApp]]:
    """Yield path and method of each route without parameters, and what the router would choose for them."""
    for route in routes:
        if not isinstance(route, Route) or route.param_convertors:
            continue
        for method in route.methods or ():
            scope = {"type": "http", "method": method, "path": route.path}
            chosen = next(each for each in routes if each.matches(scope)[0] is Match.FULL)
            if chosen is route:
                yield (route.path, method), route.app
