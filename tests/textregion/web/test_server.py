"""Start of the server: flags, ports, what is missing. Its running and its end: the fixture `server`."""

import logging
import os
import signal
import socket
import subprocess
import sys
import types
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from warm_start import WarmProgram

from textregion.cli.arguments import limits_of, parse_arguments
from textregion.cli.program import main
from textregion.errors import InputError
from textregion.web import server
from textregion.web.addresses import is_loopback
from textregion.web.cached_segmenter import Limits
from textregion.web.connections import MOST_CONNECTIONS, FirstMessages
from textregion.web.gate import LOCAL_NAMES, Gate
from textregion.web.server import DEFAULT_PORT
from textregion.web.uploads import Uploads


@pytest.fixture
def taken():
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_flags_and_their_defaults():
    args = parse_arguments(["--serve"])
    assert (args.serve, args.host, args.port, args.preset) == (True, "127.0.0.1", None, None)
    assert limits_of(args) == Limits()
    flags = "--port 0 --max_pixels 7 --max_megabytes 3 --cache_megabytes 2 --queue_size 5"
    args = parse_arguments(["--serve", *flags.split()])
    assert args.port == 0
    assert limits_of(args) == Limits(max_pixels=7, max_bytes=3 * 2**20, cache_bytes=2 * 2**20, queue_size=5)


@pytest.mark.parametrize("flags", ["--port -1", "--port 65536", "--port x", "--queue_size 0", "--max_pixels 0"])
def test_bad_flags_are_one_line(flags, capsys):
    with pytest.raises(SystemExit) as stopped:
        parse_arguments(["--serve", *flags.split()])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_missing_gradio_is_one_line_with_the_remedy(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "textregion.web.page", raising=False)  # another test may have imported it
    assert main(["--serve", "--port", "0"]) == 2
    remedy = "bash setup_env.sh --web, or pip install 'textregion[web]'"
    assert capsys.readouterr().err == f"error: the page needs gradio, which is not installed; run: {remedy}\n"
    assert "GRADIO_TEMP_DIR" not in os.environ


def test_a_taken_port_is_one_line(taken, capsys):
    assert main(["--serve", "--port", str(taken)]) == 2
    assert capsys.readouterr().err.startswith(f"error: cannot listen on 127.0.0.1 port {taken} (")


def test_images_on_the_command_line_are_refused(capsys):
    assert main(["--serve", "--image", "a.png", "--labels", "dog"]) == 2
    assert "given on the page" in capsys.readouterr().err


def test_the_next_free_port_is_taken_and_said(taken, monkeypatch, capsys):
    monkeypatch.setattr(server, "DEFAULT_PORT", taken)
    with server.listening("127.0.0.1", None) as listener:
        used = listener.getsockname()[1]
    assert taken < used < taken + server.PORTS_TRIED
    assert capsys.readouterr().err == f"port {taken} is taken; using {used}\n"
    assert DEFAULT_PORT == 7860


def test_an_address_that_is_not_ours_is_one_line():
    with pytest.raises(InputError, match="cannot listen on"), server.listening("192.0.2.1", 0):
        pass


SMALL_SERVER = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # who runs the tests may ignore it, as nohup does; that is inherited
from starlette.responses import PlainTextResponse
from textregion.web.server import listening, run_app, temporary_files
async def app(scope, receive, send):
    if scope["type"] == "http":
        await PlainTextResponse("here")(scope, receive, send)
with temporary_files() as files, listening("127.0.0.1", 0) as listener:
    print(files)
    run_app(app, listener)
"""


@pytest.fixture
def start_small(pytestconfig, tmp_path):
    """start_small(): a process of SMALL_SERVER whose temporary folder is `tmp_path`, its files, its address."""
    started = []

    def start() -> tuple[WarmProgram, Path, str]:
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        process = WarmProgram(["-c", SMALL_SERVER], pytestconfig.rootpath, environment)
        started.append(process)
        return process, Path(process.line(0)), process.line(1).removeprefix("page: ").split()[0]

    yield start
    for process in started:
        process.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_server_that_is_ended_leaves_no_files(start_small, tmp_path, number):
    process, files, address = start_small()
    assert files.parent == tmp_path
    (files / "a").mkdir()
    (files / "a" / "private.png").write_text("x")
    with urlopen(address, timeout=120) as response:
        assert response.read() == b"here"
    process.send_signal(number)
    done = process.wait(timeout=120)
    assert (done.returncode, done.stderr) == (0, "ended; all uploaded files are deleted\n")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_server_left_goes_at_the_next_start(start_small, tmp_path):
    living, _, _ = start_small()
    killed, left, _ = start_small()
    (left / "private.png").write_text("x")
    (tmp_path / "textregion-page-file").write_text("of somebody else")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "textregion-page-link").symlink_to(tmp_path / "elsewhere")
    killed.kill()
    kept = {path for path in tmp_path.iterdir() if path != left}
    _, files, _ = start_small()
    assert set(tmp_path.iterdir()) == {*kept, files}
    assert living.poll() is None


def test_half_open_connections_keep_nobody_out(start_small):
    process, _, address = start_small()
    host, port = urlsplit(address).hostname, urlsplit(address).port
    with ExitStack() as lines:
        for number in range(300):
            line = lines.enter_context(socket.create_connection((host, port), timeout=20))
            line.sendall([b"", b"GET / HTTP/1.1\r\nHost: a", b"GET / HTTP/1.1\r\nContent-Length: 9\r\n"][number % 3])
        for _ in range(3):
            with urlopen(address, timeout=20) as response:
                assert response.read() == b"here"
        if Path("/proc/self/fd").exists():
            assert len(list(Path(f"/proc/{process.pid}/fd").iterdir())) < MOST_CONNECTIONS + 50
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20).stderr == "ended; all uploaded files are deleted\n"


def test_only_the_first_messages_of_a_logger_pass():
    record = logging.LogRecord("asyncio", logging.ERROR, "", 0, "no connection", None, None)
    few = FirstMessages(3)
    assert [few.filter(record) for _ in range(5)] == [True] * 3 + [False] * 2


@pytest.mark.parametrize("name", [*LOCAL_NAMES, "127.0.0.2", "127.255.255.254:99", "[0:0:0:0:0:0:0:1]", "LOCALHOST"])
def test_local_names_are_always_served(name, tmp_path):
    gate = Gate(PlainTextResponse("here"), Uploads(tmp_path, Limits()))
    assert TestClient(gate, base_url=f"http://{name}").get("/").status_code == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1", 403), ("127.8.9.1", 403), ("::1", 403), ("::ffff:127.0.0.3", 403), ("0.0.0.0", 200), ("::", 200)],
)
def test_any_name_where_other_machines_can_ask(host, status, tmp_path):
    gate = Gate(PlainTextResponse("here"), Uploads(tmp_path, Limits()), is_loopback(host))
    assert TestClient(gate, base_url="http://other.example").get("/").status_code == status


BAD_PROXIES = [
    {"ALL_PROXY": "socks5://127.0.0.1:1"},
    {"all_proxy": "socks5h://127.0.0.1:1", "no_proxy": "example.org"},
    {"HTTPS_PROXY": "http://[::1"},
    {"HTTP_PROXY": "foo://host:1", "NO_PROXY": "localhost"},
    {"HTTPS_PROXY": "http://192.0.2.1:9"},
]


@pytest.mark.parametrize("settings", BAD_PROXIES)
def test_the_page_asks_no_proxy_and_the_weights_may(settings, monkeypatch, tmp_path):
    """Proxy settings are switched off around everything of the page, not around the making of the segmenter."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    before, seen = dict(os.environ), {}

    def note(step):
        seen[step] = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}

    def build_app(*_):
        httpx.AsyncClient().get  # noqa: B018 (gradio makes such clients)
        note("page")

    page = types.ModuleType("page")
    page.build_app = build_app
    monkeypatch.setitem(sys.modules, "textregion.web.page", page)
    monkeypatch.setattr(server, "run_app", lambda *_: note("served"))
    server.serve(lambda: note("segmenter"), "tiny", Limits(), "127.0.0.1", 0)
    assert seen["segmenter"] == settings
    for step in ("page", "served"):
        assert seen[step] == {**settings, "NO_PROXY": "*", "no_proxy": "*"}
    assert dict(os.environ) == before


def test_gradio_is_imported_with_any_proxy_settings(pytestconfig):
    code = "from textregion.web.server import without_proxies\nwith without_proxies():\n import textregion.web.page"
    environment = {**os.environ, "ALL_PROXY": "socks5://127.0.0.1:1", "HTTPS_PROXY": "http://[::1"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, cwd=pytestconfig.rootpath, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
