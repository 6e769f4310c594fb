"""The page's API as programs use it: gradio's client and curl against a running page; docs/api.md is run."""

import io
import json
import re
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
import uvicorn
from index_worlds import QUICK, write_scenes
from PIL import Image

from textregion.index import RegionIndex
from textregion.web.cached_segmenter import Limits
from textregion.web.search import TableView
from textregion.web.server import listening, temporary_files, without_proxies
from TextRegionSegmenter import TextRegionSegmenter

DOCS = (Path(__file__).resolve().parents[3] / "docs" / "api.md").read_text(encoding="utf-8")
ADDRESS = "http://127.0.0.1:7860"
CLIENTS = 20
SIZE = (41, 37)  # of the images, width and height


@pytest.fixture(scope="module")
def quick():
    """The tiny CLIP on superpixels."""
    return TextRegionSegmenter.from_preset("tiny", **QUICK)


@contextmanager
def running(segmenter, limits=None, table=None):
    """The address of a page in a thread of this process."""
    with temporary_files() as files, listening("127.0.0.1", 0) as listener, without_proxies():
        from textregion.web.page import build_app

        app = build_app(segmenter, "tiny", limits or Limits(), files, True, table=table)
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", ws="none", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            until(lambda: server.started)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def until(true, seconds: float = 120) -> None:
    """Wait for something that comes."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def client(url: str, folder: Path):
    from gradio_client import Client

    return Client(url, verbose=False, analytics_enabled=False, download_files=folder, ssl_verify=False)


def scene(folder: Path, number: int) -> Path:
    """A picture that no other number has."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 5, 3), np.uint8)
    path = folder / f"{number}.png"
    Image.fromarray(pixels).resize(SIZE, Image.Resampling.NEAREST).save(path)
    return path


def test_the_examples_of_the_docs(quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    Image.open(scene(tmp_path, 1)).save("photo.jpg")
    index = RegionIndex.create(tmp_path / "t.lance", "tiny", **QUICK)
    index.add(write_scenes(tmp_path / "photos", range(2)))
    (python,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    (shell,) = re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL)
    assert ADDRESS in python
    assert ADDRESS in shell
    names: dict = {}
    with running(quick, table=TableView(index, Limits())) as url:
        exec(compile(python.replace(ADDRESS, url), "docs/api.md", "exec"), names)
        asked = subprocess.run(["bash", "-euc", shell.replace(ADDRESS, url)], capture_output=True, text=True)
        fetched = httpx.get(json.loads(asked.stdout.splitlines()[1].removeprefix("data: "))[0]["url"]).content
        files = {name: Path(names[name]).read_bytes() for name in ("label_map", "everything", "mask")}
        pictures = [Path(hit["picture"]).read_bytes() for hit in names["hits"]]
    regions = quick.encode_image("photo.jpg")
    expected = quick.segment(regions, ["wood", "snow"])
    for png in (files["label_map"], fetched):
        with Image.open(io.BytesIO(png)) as label_map:
            assert np.array_equal(np.array(label_map), expected.label_map)
    assert [row["name"] for row in names["told"]["labels"]] == ["wood", "snow"]
    assert [row["pixels"] for row in names["told"]["labels"]] == [int((expected.label_map == i).sum()) for i in (0, 1)]
    everything = json.loads(files["everything"])
    assert len(everything["regions"]) == len(regions)
    assert [image["file_name"] for image in everything["coco"]["images"]] == ["photo.jpg"]
    best = quick.refer(regions, "the brown wall")
    with Image.open(io.BytesIO(files["mask"])) as mask:
        assert np.array_equal(np.array(mask) == 255, best.mask)
    assert (names["found"]["region"], names["found"]["score"]) == (best.region, pytest.approx(best.score))
    hits = index.search("a red mug", 24)
    assert [(hit["image"], hit["region"]) for hit in names["hits"]] == [(Path(h.image).name, h.region) for h in hits]
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert names["again"][1]["labels"][0]["name"] == "wood"
    assert asked.stdout.startswith("event: complete\n")


class Held:
    """A segmenter that encodes no image before `go` is set, and counts."""

    def __init__(self, segmenter) -> None:
        self.segmenter, self.go, self.begun = segmenter, threading.Event(), 0

    def __getattr__(self, name: str):
        return getattr(self.segmenter, name)

    def encode_image(self, pixels):
        self.begun += 1
        assert self.go.wait(120)
        return self.segmenter.encode_image(pixels)


def test_twenty_clients_at_once_are_told_their_place_and_answered(quick, tmp_path, monkeypatch):
    from gradio_client import handle_file
    from gradio_client.utils import QueueError

    held = Held(quick)
    with running(held, Limits(queue_size=CLIENTS - 1)) as url:
        clients = [client(url, tmp_path / f"client {n}") for n in range(CLIENTS + 1)]
        images = [scene(tmp_path, n) for n in range(CLIENTS + 1)]

        def ask(n: int):
            return clients[n].submit(handle_file(images[n]), f"thing {n}, sky", api_name="/segment")

        jobs = [ask(0)]
        until(lambda: held.begun)
        jobs += [ask(n) for n in range(1, CLIENTS)]
        until(lambda: all(job.status().rank is not None for job in jobs[1:]))
        with pytest.raises(QueueError, match="Queue is full"):
            ask(CLIENTS).result()
        ranks = sorted(job.status().rank for job in jobs[1:])
        held.go.set()
        answers = [job.result() for job in jobs] + [ask(CLIENTS).result()]
        for one in clients:
            one.close()
    assert ranks == list(range(CLIENTS - 1))
    assert held.begun == CLIENTS + 1
    for n, (label_map, told, _) in enumerate(answers):
        expected = quick.segment(images[n], [f"thing {n}", "sky"])
        with Image.open(label_map) as read:
            assert np.array_equal(np.array(read), expected.label_map)
        assert told["labels"][0]["name"] == f"thing {n}"


def test_calls_behind_the_gate(quick, tmp_path, untyped):
    image = scene(tmp_path, 1)
    with running(quick) as url, httpx.Client(base_url=f"{url}/gradio_api", timeout=120) as http:
        (path,) = http.post("/upload", files={"files": image.read_bytes()}).json()
        upload = {"path": path, "meta": {"_type": "gradio.FileData"}}

        def ask(*data, call="segment", **headers):
            return http.post(f"/call/{call}", json={"data": list(data)}, headers=headers)

        def said(*data, call="segment"):
            return http.get(f"/call/{call}/{ask(*data, call=call).json()['event_id']}").text

        for headers in ({"Origin": "http://evil.example"}, {"Origin": "null"}, {"Sec-Fetch-Site": "cross-site"}):
            refused = ask(upload, "sky", **headers)
            assert (refused.status_code, refused.json()) == (403, {"detail": "other pages may not use this one"})
            assert http.get("/call/segment/" + 32 * "0", headers=headers).status_code == 403
            assert http.get("/info", headers=headers).status_code == 403
        assert ask(upload, "sky", Host="evil.example").status_code == 403
        assert ask(upload, "sky", Origin=url).status_code == 200
        for stolen in ("/etc/passwd", "http://127.0.0.1:1/a.png", f"{path}/../../../a.png"):
            assert ask({**upload, "path": stolen}, "sky").status_code == 403
        for call in ("search", "segment_1", "page_content", "load_example"):
            assert ask("sky", call=call).status_code == 404
        assert ask(upload).json() == {"detail": "got 1 values for segment, expected [image, labels, threshold=0.0]"}
        assert ask(upload, "a", 0, 1).status_code == 400
        for body in (b"7", b"[]", b'{"data": 7}', b"{}"):
            assert http.post("/call/segment", content=body).json()["detail"].startswith('expected {"data": [image')
        errors = {
            ("x", "sky"): "Got the image 'x', expected an uploaded image, ",
            ("", 7): "Got labels 7 and threshold 0.0, expected a text such as ",
            ("", "sky", 2): "Got labels 'sky' and threshold 2, expected a text such as ",
            ("", " , "): "Type one or more labels",
        }
        for (image, *words), line in errors.items():
            told = said(image or upload, *words)
            assert told.startswith("event: error\n")
            assert json.loads(told.splitlines()[1].removeprefix("data: "))["error"].startswith(line)
        assert "Got the sentence ['a'], expected" in said(upload, ["a"], call="refer")
        assert said(upload, "the wall", call="refer").startswith("event: complete\n")
        shutil.rmtree(Path(path).parent)
        gone = ask(upload, "sky")
        assert (gone.status_code, gone.json()["detail"][:32]) == (410, "this image is no longer kept her")
