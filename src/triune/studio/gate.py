"""Who may ask the studio: on loopback unless told otherwise, and no other web site.

A request must name this server as its host and, where a browser says who asks, come from this page: other web sites can
neither read anything here nor start anything.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from collections.abc import Mapping
from typing import Any

from triune.errors import UserError

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Refused(UserError):
    """A request that is answered with an HTTP status and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status


def is_loopback(host: str) -> bool:
    """
    >>> is_loopback("localhost"), is_loopback("127.0.0.2"), is_loopback("0.0.0.0")
    (True, True, False)
    """
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def listen(host: str, port: int) -> socket.socket:
    """A socket to serve on; port 0 takes a free one.

    Raises:
        UserError: the port is taken, or the host is unknown or not this machine's.
    """
    found = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)
    except (OSError, UnicodeError) as error:
        if found:
            found.close()
        reason = getattr(error, "strerror", None) or str(error)
        if found is None or getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
            raise UserError(f"--host {host}: {reason}. Name another --host, an address of this machine.") from None
        raise UserError(f"--host {host} --port {port}: {reason}. Name another --port; 0 takes a free one.") from None
    return found


class Gate:
    """Lets requests through that were meant for this server, and puts :data:`HEADERS` on what it answers."""

    def __init__(self, app: Any, host: str, port: int) -> None:
        self.app, self.port = app, port
        names = {"localhost", "127.0.0.1", "[::1]"} if is_loopback(host) else set()
        self.names = names | {f"[{host}]" if ":" in host else host}
        self.any_address = host in ("0.0.0.0", "::")

    def knows(self, host: str) -> bool:
        name, colon, port = host.rpartition(":")
        if not colon or host.endswith("]"):  # browsers leave out the usual port
            name, port = host, "80"
        if port != str(self.port):
            return False
        if self.any_address:  # a name could be anybody's that points here; an address cannot
            with contextlib.suppress(ValueError):
                return bool(ipaddress.ip_address(name.strip("[]")))
            return name in ("localhost", socket.gethostname())
        return name in self.names

    def refuses(self, method: str, headers: Mapping[str, str]) -> Refused | None:
        host = headers.get("host", "")
        if not self.knows(host):
            return Refused(
                421, f"This server is not {host or 'nameless'!r}. Use the address that triune studio printed."
            )
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
        if origin not in (None, f"http://{host}") or (method != "GET" and site not in ("same-origin", "none")):
            return Refused(403, f"Requests from {origin or 'another site'} are not answered.")
        if method == "POST" and headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return Refused(415, "The body must be application/json.")
        return None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        from starlette.responses import JSONResponse

        async def sealed(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((k.encode(), v.encode()) for k, v in HEADERS.items())]
            await send(message)

        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        refusal = self.refuses(scope["method"], headers)
        answer = JSONResponse({"error": str(refusal)}, refusal.status) if refusal else self.app
        await answer(scope, receive, sealed)
