"""Finding weights: the order of the places, one line when there is none, fetching for offline use."""

import hashlib
import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest
from huggingface_hub import constants

from textregion import weights
from textregion.errors import InputError
from textregion.presets import assets_of
from textregion.weights import Asset, WeightsNotFoundError, fetch, locate, locate_all, verify

MODEL = Asset("model-x", "owner/model-x", ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"), "VX", "--x")
SAM = Asset("SAM y", "owner/sam-y", ("sam_y.pt",), "VY", "--y")
WORDS = Asset("words of x", "owner/model-x", ("tokenizer.json",), "VX", "--x", companion=True)
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def nothing_anywhere(monkeypatch, tmp_path):
    """Empty caches, no variables, offline."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(weights, "OLD_CLIP_CACHE", tmp_path / "old")
    for name in ("VX", "VY", weights.CLIP_VARIABLE, weights.SAM2_VARIABLE):
        monkeypatch.delenv(name, raising=False)


def put(path: Path, content: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def in_hub_cache(folder: Path, asset: Asset, name: str) -> Path:
    """A file as the hub's client leaves it in its cache."""
    repository = folder / ("models--" + asset.repository.replace("/", "--"))
    put(repository / "refs" / "main", COMMIT)
    return put(repository / "snapshots" / COMMIT / name)


def test_explicit_path_then_variable_then_root_then_cache(tmp_path, monkeypatch):
    explicit, variable = put(tmp_path / "mine.bin"), put(tmp_path / "variable.bin")
    root, cached = put(tmp_path / "root" / MODEL.wanted), in_hub_cache(tmp_path / "hub", MODEL, MODEL.files[0])
    monkeypatch.setenv("VX", str(variable))
    assert locate(MODEL, explicit, tmp_path / "root") == explicit
    assert locate(MODEL, None, tmp_path / "root") == variable
    monkeypatch.delenv("VX")
    assert locate(MODEL, None, tmp_path / "root") == root
    assert locate(MODEL) == cached


def test_an_explicit_path_that_does_not_exist_is_an_error_though_the_cache_has_the_file(tmp_path, monkeypatch):
    in_hub_cache(tmp_path / "hub", MODEL, MODEL.files[0])
    with pytest.raises(InputError) as error:
        locate(MODEL, tmp_path / "gone.pt")
    expected = f"names {tmp_path / 'gone.pt'}, which does not exist; give the weight file of model-x"
    assert str(error.value) == f"--x {expected}"
    monkeypatch.setenv("VX", str(tmp_path / "gone.pt"))
    with pytest.raises(InputError) as error:
        locate(MODEL)
    assert str(error.value) == f"VX {expected}"


def test_a_given_folder_must_have_the_file(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"--x is the folder .*empty without model-x/open_clip_model.safetensors"):
        locate(MODEL, tmp_path / "empty")
    path = put(tmp_path / "full" / "model-x" / MODEL.files[1])
    assert locate(MODEL, tmp_path / "full") == path
    assert locate(MODEL, tmp_path / "full" / "model-x") == path, "a clone of the repository itself"


@pytest.mark.parametrize("place", ["sam-y/sam_y.pt", "sam_y.pt"])
def test_a_root_may_hold_the_file_in_its_folder_or_plainly(tmp_path, place):
    path = put(tmp_path / "root" / place)
    assert locate(SAM, None, tmp_path / "root") == path


def test_a_root_may_be_a_hub_cache_and_names_shared_by_models_do_not_count_there(tmp_path):
    put(tmp_path / "root" / MODEL.files[0])  # of which model?
    with pytest.raises(WeightsNotFoundError):
        locate(MODEL, None, tmp_path / "root")
    cached = in_hub_cache(tmp_path / "root", MODEL, MODEL.files[1])
    assert locate(MODEL, None, tmp_path / "root") == cached


def test_openai_files_are_found_under_their_first_name():
    (clip, _) = assets_of("clip-vit-l14-336")
    path = put(weights.OLD_CLIP_CACHE / "ViT-L-14-336px.pt")
    assert locate(clip) == path


def test_a_companion_is_looked_for_beside_a_given_file_and_then_elsewhere(tmp_path, monkeypatch):
    model, beside = put(tmp_path / "a" / "model.bin"), put(tmp_path / "a" / "tokenizer.json")
    assert locate(WORDS, model) == beside
    monkeypatch.setenv("VX", str(model))
    assert locate(WORDS) == beside
    beside.unlink()
    cached = in_hub_cache(tmp_path / "hub", WORDS, "tokenizer.json")
    assert locate(WORDS, model) == cached


def test_nothing_found_is_one_line_that_names_every_step_and_place(tmp_path):
    with pytest.raises(WeightsNotFoundError) as error:
        locate_all([(MODEL, None), (SAM, None)], tmp_path / "root")
    assert str(error.value) == (
        "weights not found: open_clip_model.safetensors of owner/model-x (model-x), "
        "sam_y.pt of owner/sam-y (SAM y); --x not given, --y not given; VX not set, VY not set; "
        f"not in {tmp_path / 'root'}, {tmp_path / 'hub'}, {tmp_path / 'old'}; "
        "not from the hub: HF_HUB_OFFLINE is set; fetch them where there is internet "
        f"(python -m textregion weights --preset NAME --to {tmp_path / 'root'}), or put them at "
        f"{tmp_path / 'root' / 'model-x' / 'open_clip_model.safetensors'} and "
        f"{tmp_path / 'root' / 'sam-y' / 'sam_y.pt'}, and give --clip_download_root {tmp_path / 'root'}"
    )


def test_the_places_named_in_the_message_are_where_the_files_are_then_found(tmp_path):
    for asset in (MODEL, SAM, WORDS):
        path = put(tmp_path / "root" / asset.wanted)
        assert locate(asset, None, tmp_path / "root") == path


def test_no_network_is_one_line_at_once(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "HUB", "https://no-such-host.invalid")
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with pytest.raises(WeightsNotFoundError, match="not from the hub: no network; fetch"):
        locate(MODEL)


class Hub(BaseHTTPRequestHandler):
    """Serves files as the hub does: /owner/name/resolve/main/file."""

    files: dict[str, bytes] = {}  # noqa: RUF012 (set anew by the fixture)
    asked: list[str] = []  # noqa: RUF012

    def _answer(self, with_body: bool) -> None:
        content = self.files.get(self.path.replace("/resolve/main/", "/").replace(f"/resolve/{COMMIT}/", "/"))
        Hub.asked.append(f"{self.command} {self.path}")
        self.send_response(200 if content is not None else 404)
        self.send_header("X-Repo-Commit", COMMIT)
        if content is None:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.send_header("ETag", hashlib.sha256(content or b"").hexdigest())
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if with_body and content:
            self.wfile.write(content)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hub(monkeypatch):
    """The hub's protocol on this machine; files by "/owner/name/file"."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(weights, "HUB", f"http://127.0.0.1:{server.server_port}")
    Hub.files, Hub.asked = {}, []
    yield Hub
    server.shutdown()
    server.server_close()


def test_the_hub_is_asked_last_and_the_file_stays_in_the_root(hub, tmp_path):
    hub.files = {"/owner/model-x/open_clip_pytorch_model.bin": b"weights"}
    path = locate(MODEL, None, tmp_path / "root")
    assert path.read_bytes() == b"weights"
    assert path.is_relative_to(tmp_path / "root")
    assert "safetensors" in hub.asked[0], "the safe format first"
    count = len(hub.asked)
    assert locate(MODEL, None, tmp_path / "root") == path
    assert len(hub.asked) == count, "found in the cache without asking"


def test_a_repository_without_the_file_is_one_line(hub):
    with pytest.raises(WeightsNotFoundError, match="not from the hub: owner/model-x has none of open_clip_model"):
        locate(MODEL)


def test_fetch_makes_a_folder_that_locate_takes_and_verify_checks(hub, tmp_path):
    hub.files = {
        "/owner/model-x/open_clip_model.safetensors": b"tensors",
        "/owner/model-x/tokenizer.json": b"{}",
    }
    cached = in_hub_cache(tmp_path / "hub", SAM, "sam_y.pt")
    paths = fetch([MODEL, WORDS, SAM], tmp_path / "to")
    assert [p.relative_to(tmp_path / "to").as_posix() for p in paths] == [
        "model-x/open_clip_model.safetensors",
        "model-x/tokenizer.json",
        "sam-y/sam_y.pt",
    ]
    assert paths[2].read_bytes() == cached.read_bytes()
    lines = (tmp_path / "to" / "SHA256SUMS").read_text().splitlines()
    assert lines[0] == f"{hashlib.sha256(b'tensors').hexdigest()}  model-x/open_clip_model.safetensors"
    assert len(lines) == 3
    assert verify(tmp_path / "to") == paths
    assert [locate(asset, None, tmp_path / "to") for asset in (MODEL, WORDS, SAM)] == paths
    count = len(hub.asked)
    assert fetch([MODEL, WORDS, SAM], tmp_path / "to") == paths
    assert len(hub.asked) == count, "a second run has nothing to do"


def test_verify_names_damaged_and_missing_files(tmp_path):
    put(tmp_path / "a" / "one.pt", "one")
    put(tmp_path / "a" / "two.pt", "two")
    weights.write_checksums(tmp_path)
    put(tmp_path / "a" / "two.pt", "TWO")
    with pytest.raises(InputError, match=r"1 files are damaged: .*two\.pt; copy or fetch them again"):
        verify(tmp_path)
    (tmp_path / "a" / "one.pt").unlink()
    with pytest.raises(InputError, match=r"1 files of .* are missing: .*one\.pt"):
        verify(tmp_path)
    with pytest.raises(InputError, match="no SHA256SUMS in"):
        verify(tmp_path / "a")
    put(tmp_path / "SHA256SUMS", "nonsense\n")
    with pytest.raises(InputError, match="is damaged"):
        verify(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["a/open_clip_model.safetensors", "b/x.bin", "open.pt", "a/deep/x.pth", "x.ckpt", "a/tokenizer.json"],
)
def test_verify_names_a_file_that_was_not_fetched_but_could_be_taken(tmp_path, name):
    put(tmp_path / "a" / "open_clip_pytorch_model.bin", "one")
    weights.write_checksums(tmp_path)
    for harmless in ("README.md", "a/config.json", "a/.open_clip_model.safetensors.partial"):
        put(tmp_path / harmless)
    assert verify(tmp_path) == [tmp_path / "a" / "open_clip_pytorch_model.bin"]
    put(tmp_path / name)
    with pytest.raises(InputError, match=rf"1 files are not in .*SHA256SUMS: {tmp_path / name}; move them elsewhere"):
        verify(tmp_path)


@pytest.fixture
def proxies(monkeypatch):
    """Sets the proxy variables to these alone; the hub is asked, if it can be."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    def put_into_environment(**settings: str) -> None:
        for name in list(os.environ):
            if name.lower().endswith("_proxy"):
                monkeypatch.delenv(name)
        for name, value in settings.items():
            monkeypatch.setenv(name, value)

    return put_into_environment


@pytest.mark.parametrize("name", ["ALL_PROXY", "HTTPS_PROXY", "http_proxy", "all_proxy"])
@pytest.mark.parametrize("address", ["socks5://127.0.0.1:1", "socks5h://me:secret@host:1080", "SOCKS5://host"])
def test_a_socks_proxy_without_its_package_is_one_line(proxies, monkeypatch, name, address):
    monkeypatch.setattr(weights, "find_spec", lambda _: None)
    proxies(**{name: address})
    with pytest.raises(WeightsNotFoundError) as error:
        locate(MODEL)
    shown = name.upper()
    line = f"not from the hub: {shown} is a SOCKS proxy, which needs the package socksio; pip install socksio, or unset"
    assert line in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "http://[::1",
        "foo://host:1",
        "socks4://host:1",
        "http://host:abc",
        "http://me:secret@host:99999999",
        "http://a b:3",
        ":",
        "://x",
        "http://host:0",
    ],
)
@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_malformed_proxy_is_one_line(proxies, name, address):
    proxies(**{name: address})
    with pytest.raises(WeightsNotFoundError, match=f"hub: {name.upper()} is no address of a proxy") as error:
        locate(MODEL)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"HTTPS_PROXY": "host:3128"},
        {"https_proxy": "http://me:word@host:3128/", "NO_PROXY": "localhost,::1,10.0.0.0/8,.example"},
        {"ALL_PROXY": "socks5://host:1", "NO_PROXY": "x, *"},
        {"HTTPS_PROXY": "foo://", "no_proxy": "*"},
        {"HTTPS_PROXY": ""},
    ],
)
def test_proxies_that_the_client_takes(proxies, settings):
    proxies(**settings)
    assert weights.proxy_trouble() == ""
    httpx2.Client().close()


def test_a_proxy_is_used_as_it_is_set_and_without_one_for_the_hub_the_network_is_looked_for(proxies, hub, monkeypatch):
    hub.files = {"/owner/model-x/open_clip_model.safetensors": b"weights"}
    proxies(HTTP_PROXY=weights.HUB.removeprefix("http://"))
    monkeypatch.setattr(weights, "HUB", "http://no-such-host.invalid")
    with pytest.raises(WeightsNotFoundError) as error:
        locate(MODEL)
    assert "no network" not in str(error.value)
    assert any("no-such-host.invalid" in line for line in hub.asked), "the proxy was asked"
    proxies(HTTP_PROXY="http://127.0.0.1:9", NO_PROXY="no-such-host.invalid")
    with pytest.raises(WeightsNotFoundError, match="not from the hub: no network"):
        locate(MODEL)


@pytest.mark.parametrize("address", ["hub.example", "http://", "http://host:port", "ftp://host"])
def test_a_hub_that_is_no_address_is_one_line(proxies, monkeypatch, address):
    proxies()
    monkeypatch.setattr(weights, "HUB", address)
    with pytest.raises(WeightsNotFoundError, match=f"HF_ENDPOINT is '{address}', expected an address"):
        locate(MODEL)
