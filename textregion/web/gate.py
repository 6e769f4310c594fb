"""What the server answers at all: the routes the page uses, for this host, with no way to a file or address outside.

gradio has many more routes (an API, a proxy, monitoring, run history, fetching of URLs, …). The page needs few, so
these are named here and everything else is refused before gradio sees it.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

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
CONTENT_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)


class Refused(Exception):  # noqa: N818 (an answer, not an error of the program)
    """A request that is not answered, with its HTTP status."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


class Gate:
    """ASGI middleware around gradio's app.

    files: the one folder whose files may be read and named. max_bytes: of an uploaded file. hosts: names the page may
    be asked for by (against DNS rebinding); None allows any, for a server that others may reach.
    """

    def __init__(self, app: App, files: Path, max_bytes: int, hosts: tuple[str, ...] | None = LOCAL_NAMES) -> None:
        self.app, self.files, self.max_bytes, self.hosts = app, Path(files).resolve(), max_bytes, hosts

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with one line."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            try:
                receive = await self.check(scope, receive)
            except Refused as refused:
                await answer(send, refused.status, str(refused))
            else:
                await self.app(scope, receive, with_headers(send))

    async def check(self, scope: MutableMapping[str, Any], receive: Receive) -> Receive:
        """What to read the request's body from. Refused if the request is none that the page makes."""
        path, method = scope["path"], scope["method"]
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if self.hosts is not None and re.sub(r":\d+$", "", headers.get("host", "")) not in self.hosts:
            raise Refused(403, "this page is for this machine only")
        if method not in ROUTES or not ROUTES[method].fullmatch(path):
            raise Refused(404, "no such page")
        if path.startswith(f"{API}/file="):
            self.check_file(path.removeprefix(f"{API}/file="))
        if method != "POST":
            return receive
        if path.startswith(f"{API}/upload"):
            return limited(receive, headers, self.max_bytes + UPLOAD_EXTRA)
        return await self.check_body(receive)

    def check_file(self, name: Any) -> None:
        """Refused for anything but a file under `files`: addresses, other folders, ways around by "..", links."""
        if not isinstance(name, str):
            raise Refused(403, "no such file")
        for form in {name, unquote(name), unquote(unquote(name))}:
            if not Path(form).is_absolute() or not self.holds(form):
                raise Refused(403, "no such file")

    def holds(self, name: str) -> bool:
        """Whether a path, its links followed, lies under `files` and is no folder."""
        try:
            whole = Path(name).resolve()
            return self.files in whole.parents and not whole.is_dir()
        except (ValueError, OSError, RuntimeError):  # a null byte, a name too long, links in a circle
            return False

    async def check_body(self, receive: Receive) -> Receive:
        """The same JSON body again, after all files it names were checked."""
        body = await read_body(receive, MOST_JSON)
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise Refused(400, "expected JSON") from error
        for part in nested(content):
            if "path" in part and part["path"] is not None:
                self.check_file(part["path"])
                if not Path(part["path"]).is_file():
                    raise Refused(410, "this image is no longer kept here; upload it again")
            if str(part.get("url") or "").startswith("data:"):
                raise Refused(403, "upload the image instead")
        return replay(body, receive)


def nested(content: Any) -> list[dict]:
    """Every dictionary in a JSON value."""
    found, left = [], [content]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            found.append(part)
        left.extend(part.values() if isinstance(part, dict) else part if isinstance(part, list) else ())
    return found


async def read_body(receive: Receive, most: int) -> bytes:
    """A request's whole body; Refused when it has more than `most` bytes."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the request broke off")
        body, more = body + message.get("body", b""), message.get("more_body", False)
        if len(body) > most:
            raise Refused(413, "this request is too large")
    return body


def replay(body: bytes, receive: Receive) -> Receive:
    """Hand out a body that was read already, then whatever else comes."""
    left = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again


def limited(receive: Receive, headers: dict[str, str], most: int) -> Receive:
    """A body that ends early, as if the client had gone, after `most` bytes; Refused at once if it is announced so."""
    announced = headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > most:
        raise Refused(413, f"File size exceeds the limit of {(most - UPLOAD_EXTRA) / 2**20:g} MB")
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        return {"type": "http.disconnect"} if read > most else message

    return counted


def with_headers(send: Send) -> Send:
    """Every answer with HEADERS, by which nothing from the net is loaded, whatever the page asks for."""

    async def send_with(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await send(message)

    return send_with


async def answer(send: Send, status: int, text: str) -> None:
    """A whole answer of one line, as gradio's page shows it to the user."""
    headers = [(b"content-type", b"application/json"), *HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps({"detail": text}).encode()})
