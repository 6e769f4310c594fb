"""What the server answers at all: the routes the page uses, for this host, with no way to a file or address outside.

gradio has many more routes (a proxy, monitoring, run history, fetching of URLs, …). The page and its API (docs/api.md)
need few, so these are named here and everything else is refused before gradio sees it. Uploads never reach gradio,
whose own way bounds neither their number nor what broken ones leave behind.
"""

import asyncio
import json
import re
import secrets
from collections.abc import Callable, Mapping
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from textregion.errors import InputError
from textregion.web.addresses import is_local, origin_host
from textregion.web.cached_segmenter import MEGABYTE
from textregion.web.uploads import Uploads

API = "/gradio_api"
ROUTES = {
    "GET": re.compile(
        r"/|/(assets|static)/[\w./-]+|/(theme\.css|config|favicon\.ico|manifest\.json|robots\.txt)"
        rf"|{API}/(queue/data|upload_progress|heartbeat/[\w-]+|startup-events|theme\.css|info)"
        rf"|{API}/call/\w+/[0-9a-f]{{32}}|{API}/file=.+",
        re.DOTALL,
    ),
    "POST": re.compile(rf"{API}/(queue/join|upload|cancel|reset|call/\w+)/?"),
}
ROUTES["HEAD"] = ROUTES["GET"]
LOCAL_NAMES = ("127.0.0.1", "localhost", "[::1]")
SESSION = "textregion_session"  # the cookie by which a browser's uploads are told from another's
MOST_JSON = 64 * 1024  # bytes of a request that is no upload
UPLOAD_EXTRA = 64 * 1024  # bytes around the file in an upload
IDLE_SECONDS = 15  # between two pieces of a request's body
BODY_SECONDS = 180  # for all of it
PROGRESS_DONE = 'data: {"msg": "done"}\n\n'  # to the page's question how far an upload is
CONTENT_POLICY = (  # nothing from the net is loaded, whatever the page asks for
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),  # other ports of this machine are other origins
)


class Gate:
    """ASGI middleware around gradio's app.

    uploads: has the one folder whose files may be read and named. local: only LOCAL_NAMES and loopback addresses may be
    asked for (against DNS rebinding); False allows any name, for a server that others may reach. calls: the functions
    of the API by their names.
    """

    def __init__(
        self, app: ASGIApp, uploads: Uploads, local: bool = True, calls: Mapping[str, Callable] | None = None
    ) -> None:
        self.app, self.uploads, self.local = app, uploads, local
        self.calls = {name: signature(call) for name, call in (calls or {}).items()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with one line; every answer has HEADERS besides its own."""
        more = list(HEADERS)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *more]}
            await send(message)

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                self.check(scope)
                if scope["path"] in ("/", "/config") and SESSION not in Request(scope).cookies:
                    more.append((b"set-cookie", new_session().encode()))
                app, receive = await self.answering(scope, receive)
            except HTTPException as refused:
                app = JSONResponse({"detail": refused.detail}, refused.status_code)
            await app(scope, receive, send_with_headers)

    def check(self, scope: Scope) -> None:
        """HTTPException if the request is none that the page makes, or not made by the page."""
        headers, path, method = Headers(scope=scope), scope["path"], scope["method"]
        host = headers.get("host", "")
        if self.local and not is_local(host):
            raise HTTPException(403, "this page is for this machine only")
        if method not in ROUTES or not ROUTES[method].fullmatch(path):
            raise HTTPException(404, "no such page")
        followed = method != "POST" and path == "/" and headers.get("sec-fetch-mode") == "navigate"  # a link elsewhere
        foreign = any(not host or origin_host(one) != host.lower() for one in headers.getlist("origin"))
        if foreign or (headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not followed):
            raise HTTPException(403, "other pages may not use this one")

    async def answering(self, scope: Scope, receive: Receive) -> tuple[ASGIApp, Receive]:
        """What answers a request that passed `check`, and what it reads the body from."""
        path, name = scope["path"], called(scope["path"])
        if name is not None and name not in self.calls:
            raise HTTPException(404, f"no {name} here; there are {', '.join(self.calls) or 'none'}")
        if path.startswith(f"{API}/file="):
            self.check_file(path.removeprefix(f"{API}/file="))
        if path == f"{API}/upload_progress":
            return PlainTextResponse(PROGRESS_DONE, media_type="text/event-stream"), receive
        if scope["method"] != "POST":
            return self.app, receive
        if path.startswith(f"{API}/upload"):
            return await self.upload(scope, receive), receive
        return self.app, await self.check_body(scope, receive)

    async def upload(self, scope: Scope, receive: Receive) -> Response:
        """Keep the one file of a request, in a multipart field `files`; answers [its path]. HTTPException otherwise."""
        most, request = self.uploads.limits.max_bytes, Request(scope)
        too_large = f"File size exceeds the limit of {most / MEGABYTE:g} MB"
        announced = request.headers.get("content-length") or str(most)
        if not announced.isdecimal() or len(announced) > 15 or int(announced) > most + UPLOAD_EXTRA:
            raise HTTPException(413, too_large)
        session = request.cookies.get(SESSION) or (request.client.host if request.client else "")
        try:
            with self.uploads.reserved(int(announced)):
                body = Request({**scope, "app": None}, bounded(receive, int(announced) + UPLOAD_EXTRA, too_large))
                async with body.form(max_files=1, max_fields=0) as form:
                    file = form.get("files")
                    if not isinstance(file, UploadFile):
                        raise HTTPException(400, "expected one file, named files")
                    if (file.size or 0) > most:
                        raise HTTPException(413, too_large)
                    path = await run_in_threadpool(self.uploads.keep, file.filename or "", file.file, session)
        except InputError as error:
            raise HTTPException(503, str(error)) from error
        except (MultiPartException, ClientDisconnect) as error:
            raise HTTPException(400, "expected one file") from error
        return JSONResponse([str(path)])

    def check_file(self, name: Any) -> None:
        """HTTPException for anything but a file under `files`: addresses, other folders, "..", links."""

        def is_held(path: str) -> bool:
            try:
                whole = Path(path).resolve()
                return Path(path).is_absolute() and self.uploads.folder in whole.parents and not whole.is_dir()
            except (ValueError, OSError, RuntimeError):  # a null byte, a name too long, links in a circle
                return False

        if not isinstance(name, str) or not all(map(is_held, {name, unquote(name), unquote(unquote(name))})):
            raise HTTPException(403, "no such file")

    async def check_body(self, scope: Scope, receive: Receive) -> Receive:
        """The same JSON body again, after all files it names were checked."""
        parts = []
        try:
            body = await Request(scope, bounded(receive, MOST_JSON, "this request is too large")).body()
            content = json.loads(body, object_hook=lambda part: parts.append(part) or part)
            if (name := called(scope["path"])) is not None:
                body = json.dumps({"data": arguments(name, self.calls[name], content)}).encode()
        except (ClientDisconnect, ValueError, RecursionError) as error:
            raise HTTPException(400, "expected JSON") from error
        for part in parts:
            if part.get("path") is not None:
                self.check_file(part["path"])
                if not Path(part["path"]).is_file():
                    raise HTTPException(410, "this image is no longer kept here; upload it again")
                self.uploads.used(part["path"])
            if str(part.get("url") or "").startswith("data:"):
                raise HTTPException(403, "upload the image instead")
        return replay(body, receive)


def called(path: str) -> str | None:
    """The function of the API that a path names; None for other paths."""
    return path.removeprefix(f"{API}/call/").split("/")[0] if path.startswith(f"{API}/call/") else None


def arguments(name: str, expected: Signature, content: Any) -> list:
    """All arguments of a call, defaults filled in. HTTPException when too few or too many came."""
    data = content.get("data") if isinstance(content, dict) else None
    wanted = ", ".join(str(one.replace(annotation=Parameter.empty)) for one in expected.parameters.values())
    if not isinstance(data, list):
        raise HTTPException(400, f'expected {{"data": [{wanted}]}}')
    try:
        bound = expected.bind(*data)
    except TypeError as error:
        raise HTTPException(400, f"got {len(data)} values for {name}, expected [{wanted}]") from error
    bound.apply_defaults()
    return list(bound.args)


def new_session() -> str:
    """A cookie that no other site's request carries, and that no script reads."""
    return f"{SESSION}={secrets.token_urlsafe(16)}; Path=/; HttpOnly; SameSite=Strict"


def replay(body: bytes, receive: Receive) -> Receive:
    """Hand out a body that was read already, then whatever else comes."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def bounded(receive: Receive, most: int, too_large: str) -> Receive:
    """A body of at most `most` bytes whose pieces come within IDLE_SECONDS, all within BODY_SECONDS.

    HTTPException when more comes (`too_large` says so) or the time is up.
    """
    loop, read = asyncio.get_running_loop(), 0
    end = loop.time() + BODY_SECONDS

    async def counted() -> Message:
        nonlocal read
        try:
            message = await asyncio.wait_for(receive(), min(IDLE_SECONDS, end - loop.time()))
        except TimeoutError as error:
            raise HTTPException(408, "this request took too long") from error
        read += len(message.get("body", b""))
        if read > most:
            raise HTTPException(413, too_large)
        return message

    return counted
