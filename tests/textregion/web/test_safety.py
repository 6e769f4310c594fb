"""What the running server refuses: files of the host, other sites' requests, gradio's routes that are not needed."""

import http.client
import json
import socket
from urllib.parse import quote, urlparse

import pytest

from textregion.web.gate import MOST_JSON

CHECKOUT_FILES = ("README.md", "TextRegionSegmenter.py", "textregion/presets.yaml")


@pytest.fixture
def ask(server):
    """ask(method, target, …): (status, body, headers), the target sent as it stands."""
    address = urlparse(server.url)

    def send(method: str, target: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes, dict]:
        connection = http.client.HTTPConnection(address.hostname, address.port, timeout=120)
        try:
            connection.putrequest(method, target, skip_host="Host" in headers)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if body is not None:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return response.status, response.read(), dict(response.getheaders())
        finally:
            connection.close()

    return send


def upload(ask, data: bytes, name: str = "a.png") -> tuple[int, bytes]:
    head = f'--x\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + data + b"\r\n--x--\r\n"
    return ask("POST", "/gradio_api/upload", body, Content_Type="multipart/form-data; boundary=x")[:2]


def event(path: str, **more) -> bytes:
    """What the page sends after an upload, for another path."""
    upload = {"path": path, "meta": {"_type": "gradio.FileData"}, **more}
    data = [upload, "Labels", "sand", 0, 0.6, ["masks"]]
    return json.dumps({"data": data, "fn_index": 0, "session_hash": "abc", "event_data": None}).encode()


def refused_names(server, root):
    inside, above = str(server.files / "scene_11.png"), "../" * 12
    names = ["/etc/passwd", f"{server.files}/{above}etc/passwd", f"{server.files}/..", str(server.files)]
    names += [f"{above}etc/passwd", "README.md", "./README.md", "//etc/passwd", f"{inside}/{above}etc/passwd", "C:\\x"]
    names += [f"{root}/{name}" for name in CHECKOUT_FILES] + [
        "file:///etc/passwd",
        "\0",
        "/\0",
        f"/{'x' * 5000}",
        "~/.bashrc",
        ".gradio/x",
    ]
    return names


def test_files_of_the_host_are_refused_in_every_spelling(ask, server, pytestconfig):
    for name in refused_names(server, pytestconfig.rootpath):
        for spelled in (quote(name), quote(name, safe=""), quote(quote(name, safe=""))):
            status, body, _ = ask("GET", f"/gradio_api/file={spelled}")
            assert (status, json.loads(body)) == (403, {"detail": "no such file"}), spelled
            assert ask("HEAD", f"/gradio_api/file={spelled}")[0] == 403
    assert ask("GET", f"/gradio_api/file={server.files}/scene_11.png")[0] == 200


def test_a_link_in_the_folder_leads_nowhere(ask, server):
    (server.files / "link.png").symlink_to("/etc/passwd")
    assert ask("GET", f"/gradio_api/file={server.files}/link.png")[0] == 403
    (server.files / "link.png").unlink()


def test_addresses_are_not_fetched(ask, server):
    for address in ("http://127.0.0.1:1/", "https://example.org/a.png", "ftp://example.org/a", "http:/example.org/"):
        assert ask("GET", f"/gradio_api/file={address}")[0] == 403
        assert ask("POST", "/gradio_api/queue/join", event(address), Content_Type="application/json")[0] == 403
    data = event(f"{server.files}/scene_11.png", url="data:image/png;base64,AAAA")
    assert ask("POST", "/gradio_api/queue/join", data, Content_Type="application/json")[0] == 403


def test_an_event_may_name_uploaded_files_only(ask, server, pytestconfig):
    for name in refused_names(server, pytestconfig.rootpath):
        assert ask("POST", "/gradio_api/queue/join", event(name), Content_Type="application/json")[0] == 403, name


@pytest.mark.parametrize(
    "target",
    [
        *(
            "/docs",
            "/openapi.json",
            "/gradio_api/infos",
            "/gradio_api/call/v2/segment",
            "/gradio_api/openapi.json",
            "/monitoring",
            "/monitoring/summary",
        ),
        *("/gradio_api/proxy=http://127.0.0.1:1/", "/proxy=http://127.0.0.1:1/", "/file=/etc/passwd", "/login_check"),
        *("/gradio_api/run/predict", "/gradio_api/api/new_image", "/gradio_api/call/new_image", "/gradio_api/runs"),
        *("/gradio_api/component_server", "/gradio_api/file/etc/passwd", "/gradio_api/deep_link", "/svelte/x.js"),
        *("/gradio_api/stream/a/b/1/playlist.m3u8", "/gradio_api/mcp/sse", "/gradio_api/dev/reload", "/nothing"),
        *("/gradio_api/custom_component/1/client/component/../../etc/passwd", "/gradio_api/queue/status"),
    ],
)
def test_routes_that_the_page_needs_not_are_closed(ask, target):
    assert ask("GET", target)[0] == 404
    assert ask("POST", target, b"{}", Content_Type="application/json")[0] == 404


@pytest.mark.parametrize("folder", ["assets", "static"])
def test_gradios_own_files_lead_no_further(ask, folder):
    for way in ("../" * 12, "..%2f" * 12, "%2e%2e/" * 12):
        status, body, _ = ask("GET", f"/{folder}/{way}etc/passwd")
        assert status in (403, 404)
        assert b"root:" not in body


def test_other_hosts_names_and_methods_are_refused(ask):
    for host in (
        "evil.example:80",
        "localhost.evil.example",
        "evil.example@localhost",
        "127.0.0.1.evil.example:80",
        "",
    ):
        status, body, _ = ask("GET", "/", Host=host)
        assert (status, json.loads(body)) == (403, {"detail": "this page is for this machine only"}), host
    for host in ("localhost:80", "127.0.0.1", "[::1]:80"):
        assert ask("GET", "/", Host=host)[0] == 200
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert ask(method, "/")[0] == 404


def test_another_sites_script_gets_no_permission(ask):
    _, _, headers = ask("GET", "/config", Origin="http://evil.example")
    assert "access-control-allow-origin" not in {name.lower() for name in headers}


FOREIGN = [
    {"Origin": "http://evil.example", "Sec_Fetch_Site": "cross-site"},
    {"Origin": "http://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:1", "Sec_Fetch_Site": "same-site"},  # another port of this machine
    {"Origin": "http://localhost"},
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},
]


@pytest.mark.parametrize("headers", FOREIGN)
def test_other_pages_may_neither_send_nor_read(ask, server, headers):
    before = list(server.files.rglob("*"))
    refusal = {"detail": "other pages may not use this one"}
    head = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\nhello\r\n--x--\r\n'
    for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/cancel"):
        status, body, _ = ask("POST", path, head, Content_Type="multipart/form-data; boundary=x", **headers)
        assert (status, json.loads(body)) == (403, refusal)
    for path in (
        "/",
        "/config",
        "/gradio_api/queue/data?session_hash=a",
        f"/gradio_api/file={server.files}/scene_11.png",
    ):
        status, body, answered = ask("GET", path, **headers)
        assert (status, json.loads(body)) == (403, refusal)
        assert not [name for name in answered if name.lower().startswith("access-control")]
    assert list(server.files.rglob("*")) == before


def test_the_page_itself_and_links_to_it_are_served(ask, server):
    own = {"Origin": server.url, "Sec_Fetch_Site": "same-origin"}
    assert ask("GET", "/config", **own)[0] == 200
    status, _, headers = ask("GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")
    assert status == 200
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert ask("GET", "/config", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 403


@pytest.mark.parametrize("number", [0, 2, 900])
def test_a_request_has_one_file(ask, server, number):
    before = len(list(server.files.rglob("*")))
    head = '--x\r\nContent-Disposition: form-data; name="files"; filename="{}.png"\r\n\r\n{}\r\n'
    body = "".join(head.format(n, n) for n in range(number)).encode() + b"--x--\r\n"
    assert ask("POST", "/gradio_api/upload", body, Content_Type="multipart/form-data; boundary=x")[0] == 400
    assert len(list(server.files.rglob("*"))) == before


@pytest.mark.parametrize("kind", ["multipart/form-data", "text/plain", "multipart/form-data; boundary=y"])
def test_an_upload_that_is_none_is_refused(ask, kind):
    assert ask("POST", "/gradio_api/upload", b"hello", Content_Type=kind)[0] == 400


def test_an_upload_that_breaks_off_leaves_nothing(server):
    address = urlparse(server.url)
    before = sorted(server.temporary.rglob("*"))
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 900000\r\n"
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    for size in (0, 1, 700_000):
        with socket.create_connection((address.hostname, address.port), timeout=20) as line:
            line.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode() + part + b"y" * size)
    assert sorted(server.temporary.rglob("*")) == before


def test_large_requests_are_refused(ask):
    status, body = upload(ask, b"x" * (2**20 + 2**17))
    assert (status, json.loads(body)) == (413, {"detail": "File size exceeds the limit of 1 MB"})
    large = b'{"data": "' + b"x" * MOST_JSON + b'"}'
    assert ask("POST", "/gradio_api/queue/join", large, Content_Type="application/json")[0] == 413
    assert ask("POST", "/gradio_api/queue/join", b"no json", Content_Type="application/json")[0] == 400
    assert ask("POST", "/gradio_api/queue/join", b"[" * 60_000, Content_Type="application/json")[0] == 400


def test_an_upload_that_hides_its_size_is_cut_off(server):
    address, chunk = urlparse(server.url), b"x" * 2**16
    before = sum(path.stat().st_size for path in server.files.rglob("*"))
    with socket.create_connection((address.hostname, address.port), timeout=120) as line:
        head = "POST /gradio_api/upload HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n"
        line.sendall(f"{head}Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode())
        part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        try:
            for body in [part, *[chunk] * 40, b""]:
                line.sendall(f"{len(body):x}\r\n".encode() + body + b"\r\n")
            assert line.recv(99) == b"" or b" 200 " not in line.recv(99)
        except OSError:
            pass  # the server closed the connection
    assert sum(path.stat().st_size for path in server.files.rglob("*")) < before + 2**20 + 2**18


def test_an_uploaded_name_stays_in_the_folder(ask, server):
    status, body = upload(ask, b"hello", "../../../../evil.sh")
    assert status == 200
    (path,) = json.loads(body)
    assert path.startswith(f"{server.files}/")
    assert path.endswith("/evil.sh")
    status, body, headers = ask("GET", f"/gradio_api/file={quote(path)}")
    assert (status, body) == (200, b"hello")
    assert headers["content-disposition"].startswith("attachment")  # never run as a page
    assert headers["x-content-type-options"] == "nosniff"


def test_the_page_names_nothing_outside_to_load(ask):
    status, body, headers = ask("GET", "/")
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    for tag in (b"<script", b"<link", b"<img", b"<iframe"):
        for part in body.split(tag)[1:]:
            head = part.split(b">")[0]
            assert b"http" not in head
            assert b'="//' not in head
    assert b"@import" not in ask("GET", "/theme.css")[1]
