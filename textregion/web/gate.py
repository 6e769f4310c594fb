"""What the server answers at all: the routes the page uses, for this host, with no way to a file or address outside.

gradio has many more routes (an API, a proxy, monitoring, run history, fetching of URLs, …). The page needs few, so
these are named here and everything else is refused before gradio sees it.
"""

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from textregion.web.cached_segmenter import MEGABYTE

API = "/gradio_api"
ROUTES = {
    "GET": re.compile(
        r"/|/(assets|static)/[\w./-]+|/(theme\.css|config|favicon\.ico|manifest\.json|robots\.txt)"
        rf"|{API}/(queue/data|upload_progress|heartbeat/\w+|startup-events|theme\.css)|{API}/file=.+",
        re.DOTALL,
    ),
    "POST": re.compile(rf"{API}/(queue/join|upload|cancel|reset)/?"),
}
ROUTES["HEAD"] = ROUTES["GET"]
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
MOST_JSON = 64 * 1024  # bytes of a request that is no upload
UPLOAD_EXTRA = 64 * 1024  # bytes around the file in an upload
CONTENT_POLICY = (  # nothing from the net is loaded, whatever the page asks for
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Gate:
    """ASGI middleware around gradio's app.

    files: the one folder whose files may be read and named. max_bytes: of an uploaded file. local: only LOCAL_NAMES may
    be asked for (against DNS rebinding); False allows any name, for a server that others may reach.
    """

    def __init__(self, app: ASGIApp, files: Path, max_bytes: int, local: bool = True) -> None:
        self.app, self.files, self.max_bytes = app, Path(files).resolve(), max_bytes
        self.check_host = TrustedHostMiddleware(accept_host, LOCAL_NAMES if local else None, www_redirect=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with one line; every answer has HEADERS besides its own."""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
            await send(message)

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                await self.check_host(scope, receive, refuse_host)
                receive = await self.check(scope, receive)
            except HTTPException as refused:
                answer = JSONResponse({"detail": refused.detail}, refused.status_code)
                await answer(scope, receive, send_with_headers)
            else:
                await self.app(scope, receive, send_with_headers)

    async def check(self, scope: Scope, receive: Receive) -> Receive:
        """What to read the request's body from. HTTPException if the request is none that the page makes."""
        path, method = scope["path"], scope["method"]
        if method not in ROUTES or not ROUTES[method].fullmatch(path):
            raise HTTPException(404, "no such page")
        if path.startswith(f"{API}/file="):
            self.check_file(path.removeprefix(f"{API}/file="))
        if method != "POST":
            return receive
        if path.startswith(f"{API}/upload"):
            return limited(receive, Headers(scope=scope), self.max_bytes + UPLOAD_EXTRA)
        return await self.check_body(scope, receive)

    def check_file(self, name: Any) -> None:
        """HTTPException for anything but a file under `files`: addresses, other folders, "..", links."""

        def is_held(path: str) -> bool:
            try:
                whole = Path(path).resolve()
                return Path(path).is_absolute() and self.files in whole.parents and not whole.is_dir()
            except (ValueError, OSError, RuntimeError):  # a null byte, a name too long, links in a circle
                return False

        if not isinstance(name, str) or not all(map(is_held, {name, unquote(name), unquote(unquote(name))})):
            raise HTTPException(403, "no such file")

    async def check_body(self, scope: Scope, receive: Receive) -> Receive:
        """The same JSON body again, after all files it names were checked."""
        body, parts = b"", []
        try:
            async for block in Request(scope, receive).stream():
                body += block
                if len(body) > MOST_JSON:
                    raise HTTPException(413, "this request is too large")
            json.loads(body, object_hook=lambda part: parts.append(part) or part)
        except (ClientDisconnect, ValueError, RecursionError) as error:
            raise HTTPException(400, "expected JSON") from error
        for part in parts:
            if part.get("path") is not None:
                self.check_file(part["path"])
                if not Path(part["path"]).is_file():
                    raise HTTPException(410, "this image is no longer kept here; upload it again")
            if str(part.get("url") or "").startswith("data:"):
                raise HTTPException(403, "upload the image instead")
        return replay(body, receive)


async def accept_host(scope: Scope, receive: Receive, send: Send) -> None:
    """What TrustedHostMiddleware passes a good request on to: the gate has more to check."""


async def refuse_host(message: Message) -> None:
    """What TrustedHostMiddleware sends its own answer to: the gate's says why."""
    raise HTTPException(403, "this page is for this machine only")


def replay(body: bytes, receive: Receive) -> Receive:
    """Hand out a body that was read already, then whatever else comes."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def limited(receive: Receive, headers: Headers, most: int) -> Receive:
    """A body that ends early, as if the client had gone, after `most` bytes.

    HTTPException at once if more are announced.
    """
    announced = headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > most:
        raise HTTPException(413, f"File size exceeds the limit of {(most - UPLOAD_EXTRA) / MEGABYTE:g} MB")
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        return {"type": "http.disconnect"} if read > most else message

    return counted
