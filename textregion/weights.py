"""Where weights are found: explicit path, environment variable, local cache, hub; fetching them for offline use.

Environment: TEXTREGION_CLIP and TEXTREGION_SAM2 name a weight file, or a folder made by `fetch`, of the image-text
model and of SAM 2. HF_HUB_OFFLINE=1 never asks the network; HF_HOME moves the cache. The program that fetches is
`textregion weights`.
"""

import os
import re
import shutil
import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from os.path import isfile
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx2
import huggingface_hub
from httpx2 import HTTPError, InvalidURL
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled, RemoteEntryNotFoundError

from textregion.errors import InputError, first_line
from textregion.storage import file_hash, read_text

CLIP_VARIABLE = "TEXTREGION_CLIP"
SAM2_VARIABLE = "TEXTREGION_SAM2"
CHECKSUMS = "SHA256SUMS"
WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json")
# The weights of a repository in transformers' layout, whatever the model; a large one is in parts, with an index.
TRANSFORMERS_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin")
TRANSFORMERS_FILES += ("pytorch_model.bin.index.json",)
SHARED_NAMES = {"open_clip_model.safetensors", "open_clip_pytorch_model.bin", "tokenizer.json", *TRANSFORMERS_FILES}
HUB = constants.ENDPOINT
PROXIES = ("http", "https", "all")  # HTTP_PROXY, HTTPS_PROXY, ALL_PROXY
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
OLD_CLIP_CACHE = Path("~/.cache/clip")


@dataclass(frozen=True)
class Asset:
    """One file that a model needs, and where it is published.

    what: the model, as shown to the user. repository: "owner/name" on the hub. files: names of the same content in the
    order of preference (safetensors first). variable, option: the environment variable and the command-line flag that
    give a path. original: its name where the authors first published it. companion: a file that belongs beside another
    (a tokenizer): a given path names that other file's place.
    """

    what: str
    repository: str
    files: tuple[str, ...]
    variable: str
    option: str
    original: str = ""
    companion: bool = False

    @property
    def folder(self) -> str:
        """The folder of this asset inside a weights folder: the repository's own name."""
        return self.repository.split("/")[-1]

    @property
    def wanted(self) -> str:
        """Its place in a weights folder, e.g. sam2.1-hiera-tiny/sam2.1_hiera_tiny.pt."""
        return f"{self.folder}/{self.files[0]}"


class WeightsNotFoundError(InputError):
    """No step of the search found the files `assets`; the one-line message names the steps and what to do."""

    def __init__(self, assets: Sequence[Asset], root: str | Path | None, why: str) -> None:
        self.assets, self.why = tuple(assets), why
        files = ", ".join(f"{asset.files[0]} of {asset.repository} ({asset.what})" for asset in assets)
        flags = ", ".join(f"{flag} not given" for flag in dict.fromkeys(asset.option for asset in assets))
        variables = ", ".join(f"{name} not set" for name in dict.fromkeys(asset.variable for asset in assets))
        looked = ", ".join(str(folder) for folder in _cache_folders(root))
        target = Path(root or "weights")
        places = " and ".join(str(target / asset.wanted) for asset in assets)
        super().__init__(
            f"weights not found: {files}; {flags}; {variables}; not in {looked}; not from the hub: {why}; fetch "
            f"them where there is internet (python -m textregion weights --preset NAME --to {target}), or put them at "
            f"{places}, and give --clip_download_root {target}"
        )


def locate(asset: Asset, explicit: str | Path | None = None, root: str | Path | None = None) -> Path:
    """The file of an asset: explicit path, environment variable, local cache, hub, in this order.

    explicit: a path given by the user, which must exist: nothing else is tried then. The same holds for the
    environment variable when it is set. Either may be a folder made by `fetch`. root: a weights folder or hub
    cache to look in first and to download to.
    Raises InputError (one line) when an explicit path is missing, WeightsNotFoundError when nothing is found:
    its message names each step and the exact place where the file may be put.
    """
    given, origin = explicit, asset.option
    if given is None:
        given, origin = os.environ.get(asset.variable) or None, asset.variable
    path = _given(asset, Path(given).expanduser(), origin) if given is not None else None
    return path or _cached(asset, root) or _download(asset, root)


def locate_all(requests: Sequence[tuple[Asset, str | Path | None]], root: str | Path | None = None) -> list[Path]:
    """`locate` for several (asset, explicit path); whatever is not found is reported in one line."""
    found, missing, why = [], [], ""
    for asset, explicit in requests:
        try:
            found.append(locate(asset, explicit, root))
        except WeightsNotFoundError as error:
            missing.append(asset)
            why = error.why
    if missing:
        raise WeightsNotFoundError(missing, root, why)
    return found


def _given(asset: Asset, path: Path, origin: str) -> Path | None:
    """The file that a given path means; None for a companion that does not lie there.

    A folder is one of weights as `fetch` makes it, or a repository in transformers' layout.
    """
    if path.is_dir():
        plain = asset.files if asset.companion else TRANSFORMERS_FILES
        beside = next((path / name for name in plain if (path / name).is_file()), None)
        found = next(_in_folder(asset, path), beside)
        if found is None and not asset.companion:
            raise InputError(f"{origin} is the folder {path} without {asset.wanted}, which {asset.what} needs")
        return found
    if not path.is_file():
        raise InputError(f"{origin} names {path}, which does not exist; give the weight file of {asset.what}")
    if not asset.companion:
        return path
    return next((beside for name in asset.files if (beside := path.with_name(name)).is_file()), None)


def _in_folder(asset: Asset, folder: Path) -> Iterator[Path]:
    """Layouts of a weights folder: repository folder, a file of its own name, a clone of it, hub cache."""
    own_names = [name for name in (asset.original, *asset.files) if name and name not in SHARED_NAMES]
    names = [f"{asset.folder}/{name}" for name in asset.files] + own_names
    if folder.name == asset.folder:
        names += asset.files
    yield from (path for name in names if (path := folder / name).is_file())
    for name in asset.files:
        cached = huggingface_hub.try_to_load_from_cache(asset.repository, name, cache_dir=folder)
        if isinstance(cached, str):
            yield Path(cached)


def _cached(asset: Asset, root: str | Path | None) -> Path | None:
    return next((path for folder in _cache_folders(root) for path in _in_folder(asset, folder)), None)


def _cache_folders(root: str | Path | None) -> list[Path]:
    roots = [Path(root).expanduser()] if root else []
    return [*roots, Path(constants.HF_HUB_CACHE), OLD_CLIP_CACHE.expanduser()]


def _download(asset: Asset, root: str | Path | None, **target: str) -> Path:
    """From the hub with its progress bar, into `root`, the usual cache, or as `target` says."""
    where = target or ({"cache_dir": str(Path(root).expanduser())} if root else {})
    why = unreachable()
    for name in () if why else asset.files:
        try:
            return Path(hf_hub_download(asset.repository, name, endpoint=HUB, **where))
        except RemoteEntryNotFoundError:
            why = f"{asset.repository} has none of {', '.join(asset.files)}"
        except (OfflineModeIsEnabled, HfHubHTTPError, HTTPError, InvalidURL, OSError) as error:
            why = " ".join(str(error.__cause__ or error).split())[:160]
            break
    raise WeightsNotFoundError([asset], root, why)


def unreachable() -> str:
    """Why the hub cannot be asked at all, or ''; spares the client's half minute of retries, and its tracebacks."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        host, port = urlsplit(HUB).hostname or "", urlsplit(HUB).port or 443
    except ValueError:
        host, port = "", 0
    if not host or urlsplit(HUB).scheme not in ("http", "https"):
        return f"HF_ENDPOINT is {HUB!r}, expected an address such as https://host"
    if trouble := proxy_trouble():
        return trouble
    if any(getproxies().get(kind) for kind in PROXIES) and not proxy_bypass(host):
        return ""
    try:
        socket.getaddrinfo(host, port)
        return ""
    except OSError:
        return "no network"


def proxy_trouble() -> str:
    """What in the proxy settings keeps the hub's client from working, and what to do about it; '' if nothing does.

    The client reads all of them, also those meant for other addresses. Their user names and passwords are not shown.
    """
    settings = getproxies()
    if "*" in (host.strip() for host in settings.get("no", "").split(",")):
        return ""
    for kind in PROXIES:
        address, name = settings.get(kind), f"{kind.upper()}_PROXY"
        if address and (scheme := _proxy_scheme(address)) is None:
            return f"{name} is no address of a proxy; expected http://host:port or socks5://host:port, or unset {name}"
        if address and scheme.startswith("socks") and find_spec("socksio") is None:
            return f"{name} is a SOCKS proxy, which needs the package socksio; pip install socksio, or unset {name}"
    try:
        httpx2.Client(verify=False).close()
    except (ImportError, InvalidURL, ValueError) as error:
        return f"the proxy settings cannot be used ({first_line(error)}); look at NO_PROXY, or unset it"
    return ""


def _proxy_scheme(address: str) -> str | None:
    """The scheme of a proxy's address, http where it has none; None when it is no address."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        fits = parts.scheme in PROXY_SCHEMES and parts.port != 0 and bool(parts.hostname)
    except ValueError:
        return None
    return parts.scheme if fits and not re.search(r"\s", address) else None


# ---------------------------------------------------------------------- fetching for use without internet


def fetch(assets: Sequence[Asset], to: str | Path) -> list[Path]:
    """Bring every asset into the folder `to`, and write SHA-256 sums of all its files beside them.

    Files land at `to`/<repository name>/<file>; a folder made so is what --clip_download_root and the
    environment variables take. Files already there are kept, cached ones copied, others downloaded (an
    interrupted download goes on where it stopped). Raises InputError when one is not found, or cannot be written.
    """
    try:
        paths = [_fetch_one(asset, Path(to)) for asset in assets]
        write_checksums(Path(to))
        return paths
    except OSError as error:
        raise InputError(f"cannot write to {to} ({error}); give another folder as --to") from error


def _fetch_one(asset: Asset, folder: Path) -> Path:
    place = folder / asset.folder
    here = next((place / name for name in asset.files if (place / name).is_file()), None)
    if here is not None:
        return here
    cached = _cached(asset, None)
    if cached is None:
        return _download(asset, folder, local_dir=str(place))
    place.mkdir(parents=True, exist_ok=True)
    partial = shutil.copyfile(cached, place / f".{cached.name}.partial")
    return partial.replace(place / cached.name)


def write_checksums(folder: Path) -> None:
    """Write `SHA256SUMS` over all files below the folder but hidden ones, in the format of the sha256sum program."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != CHECKSUMS)
    names = [path.relative_to(folder) for path in files]
    shown = [name for name in names if not any(part.startswith(".") for part in name.parts)]  # clients keep hidden ones
    lines = [f"{file_hash(folder / name)}  {name.as_posix()}\n" for name in shown]
    (folder / CHECKSUMS).write_text("".join(lines), encoding="utf-8")


def verify(folder: str | Path) -> list[Path]:
    """The files of a weights folder; InputError naming those missing or unlike their written checksum.

    Also those that `locate` could take from the folder, in preference even, though they have no checksum.
    """
    folder = Path(folder)
    sums = folder / CHECKSUMS
    again = f"with python -m textregion weights --to {folder}"
    if not sums.is_file():
        raise InputError(f"no {CHECKSUMS} in {folder}; make the folder {again}")
    lines = read_text(sums, "the checksums of a weights folder").splitlines()
    entries = [line.split("  ", 1) for line in lines if line.strip()]
    if not entries or any(len(entry) != 2 for entry in entries):
        raise InputError(f"{sums} is damaged; make the folder again {again}")
    paths = [folder / name for _, name in entries]
    missing = [str(path) for path in paths if not isfile(path)]
    if missing:
        raise InputError(f"{len(missing)} files of {sums} are missing: {', '.join(missing)}; copy them again")
    wrong = [str(path) for path, (digest, _) in zip(paths, entries, strict=True) if file_hash(path) != digest]
    if wrong:
        raise InputError(f"{len(wrong)} files are damaged: {', '.join(wrong)}; copy or fetch them again")
    there = (path for path in sorted(folder.rglob("*")) if path.suffix in WEIGHT_SUFFIXES or path.name in TOKENIZERS)
    unlisted = [str(path) for path in there if path not in paths and not path.name.startswith(".") and path.is_file()]
    if unlisted:
        raise InputError(f"{len(unlisted)} files are not in {sums}: {', '.join(unlisted)}; move them elsewhere")
    return paths
