"""The page in headless Chromium, end to end: the server is the real program in a process of its own."""

import io
import json
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from textregion.labels import region_scores
from textregion.web.views import EMPTY

LABELS = ["sand", "brick", "black ring", "white hexagon", "yellow square"]
OTHER_LABELS = ["black shape", "white shape", "sand"]
LOCAL = {"127.0.0.1", "localhost"}


class Visitor:
    """One user's page, by what a user sees and does."""

    def __init__(self, browser, server, width: int = 1280, height: int = 800) -> None:
        self.context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        self.page = self.context.new_page()
        self.page.set_default_timeout(120_000)  # as long as a busy machine may take
        self.asked: list[str] = []
        self.wrong: list[str] = []
        self.context.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.url = server.url
        self.start_again()

    def start_again(self) -> None:
        self.page.goto(self.url)
        self.page.get_by_text(EMPTY).wait_for()

    def upload(self, name: str, data: bytes) -> None:
        file = {"name": name, "mimeType": "image/png", "buffer": data}
        self.page.locator("#image input[type=file]").set_input_files([file])

    def remove(self) -> None:
        self.page.locator("#image").get_by_role("button", name="Remove Image").click()
        self.page.get_by_text(EMPTY).wait_for()

    @property
    def source(self) -> str:
        picture = self.page.locator("#result img")
        return picture.get_attribute("src") if picture.count() else ""

    def new_picture(self, before: str) -> np.ndarray:
        """Wait for another picture than that at `before`; its pixels, as the browser got them."""
        loaded = "old => { const i = document.querySelector('#result img'); return i && i.src !== old && i.complete }"
        self.page.wait_for_function(loaded, arg=before)
        return np.array(Image.open(io.BytesIO(self.context.request.get(self.source).body())).convert("RGB"))

    def ask(self, text: str) -> np.ndarray:
        before = self.source
        self.page.locator("#text textarea, #text input").first.fill(text)
        self.page.get_by_role("button", name="Show").click()
        return self.new_picture(before)

    def set_number(self, name: str, value: float) -> np.ndarray:
        before = self.source
        box = self.page.locator(f"#{name} input[type=number]")
        box.fill(str(value))
        box.press("Enter")
        return self.new_picture(before)

    def switch(self, name: str) -> np.ndarray:
        before = self.source
        self.page.locator("#switches").get_by_label(name).click()
        return self.new_picture(before)

    def click_picture(self, x: float, y: float) -> np.ndarray:
        """Click at shares of the picture's sides."""
        before, box = self.source, self.page.locator("#result img").bounding_box()
        self.page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])
        return self.new_picture(before)

    def save(self, name: str) -> tuple[str, bytes]:
        with self.page.expect_download() as download:
            self.page.get_by_role("button", name=name).click()
        return download.value.suggested_filename, Path(download.value.path()).read_bytes()

    def scores(self) -> list[list[str]]:
        rows = self.page.locator("#scores tbody tr").all()
        return [[cell.inner_text().strip() for cell in row.locator("td").all()] for row in rows]

    def legend(self) -> list[str]:
        return [name.inner_text() for name in self.page.locator("#legend .tr-name").all()]

    def close(self) -> None:
        """Nothing was fetched from elsewhere and no script failed."""
        self.context.close()
        hosts = {urlparse(url).hostname for url in self.asked if not url.startswith(("data:", "blob:"))}
        assert hosts <= LOCAL
        assert self.wrong == []


@pytest.fixture(scope="module")
def first_visitor(browser, server):
    here = Visitor(browser, server)
    yield here
    here.close()


@pytest.fixture
def visitor(first_visitor):
    """A page as it is when it was just opened."""
    first_visitor.start_again()
    return first_visitor


@pytest.fixture(scope="module")
def known(tiny_segmenter, scene_file):
    """What the API says about the scene: tokens, and the scores of LABELS."""
    regions = tiny_segmenter.encode_image(scene_file)
    return regions, region_scores(regions, tiny_segmenter.encode_text(LABELS), LABELS)


def middle_of(tiny_segmenter, regions, label: str) -> tuple[int, tuple[float, float]]:
    """A region of a label and a point well within it, as shares of the sides."""
    result = tiny_segmenter.segment(regions, LABELS)
    y, x = np.argwhere((result.label_map == LABELS.index(label)) & (result.region_map >= 0)).mean(0)
    return int(result.region_map[int(y), int(x)]), ((x + 0.5) / 256, (y + 0.5) / 256)


def test_labels_are_asked_and_asked_again_without_another_encoding(visitor, server, scene_file, known, tiny_segmenter):
    before = server.encodings
    visitor.upload(scene_file.name, scene_file.read_bytes() + b"asked again")  # a file that no other test has sent
    regions_alone = visitor.new_picture("")
    visitor.page.get_by_text(f"{len(known[0])} regions found. Now type labels").wait_for()
    labelled = visitor.ask(", ".join(LABELS))
    assert labelled.shape == (768, 768, 3)
    assert (labelled != regions_alone).any()
    assert sorted(visitor.legend()) == sorted(LABELS)

    region, (x, y) = middle_of(tiny_segmenter, known[0], "yellow square")
    assert (visitor.click_picture(x, y) != labelled).any()
    cosine, probability = known[1][0][region], known[1][1][region]
    order = np.argsort(-cosine)
    assert LABELS[order[0]] == "yellow square"
    visitor.page.get_by_text(f"Region {region}", exact=True).wait_for()
    assert visitor.scores() == [[LABELS[i], f"{cosine[i]:.3f}", "", f"{probability[i]:.1%}"] for i in order]

    visitor.ask(", ".join(OTHER_LABELS))
    assert sorted(visitor.legend()) == sorted(OTHER_LABELS)
    assert {row[0] for row in visitor.scores()} == set(OTHER_LABELS)  # the clicked region stays
    assert server.encodings == before + 1


def test_threshold_opacity_and_switches_change_the_picture(visitor, server, scene_file):
    before = server.encodings
    visitor.upload(scene_file.name, scene_file.read_bytes())
    visitor.new_picture("")
    pictures = [visitor.ask(", ".join(LABELS))]
    pictures.append(visitor.set_number("threshold", 0.95))
    pictures.append(visitor.set_number("opacity", 0.2))
    pictures += [visitor.switch(name) for name in ("names", "heat map", "masks", "heat map")]
    for one, next_one in pairwise(pictures):
        assert (one != next_one).any()
    plain = np.array(Image.open(scene_file).resize((768, 768), Image.Resampling.BICUBIC))
    assert np.abs(pictures[-1].astype(int) - plain).mean() < 3  # all switches off: the image alone
    assert server.encodings <= before + 1


def test_downloads_hold_what_is_shown(visitor, scene_file, known, tiny_segmenter):
    visitor.upload(scene_file.name, scene_file.read_bytes())
    visitor.new_picture("")
    shown = visitor.ask(", ".join(LABELS))
    expected = tiny_segmenter.segment(known[0], LABELS)

    name, data = visitor.save("Picture (PNG)")
    assert name == "my_scene_picture.png"
    assert (np.array(Image.open(io.BytesIO(data))) == shown).all()

    name, data = visitor.save("Label map (PNG)")
    assert name == "my_scene_labels.png"
    assert (np.array(Image.open(io.BytesIO(data))) == expected.label_map).all()

    name, data = visitor.save("JSON")
    assert name == "my_scene.json"
    content = json.loads(data)
    assert [label["name"] for label in content["labels"]] == LABELS
    assert [label["share"] for label in content["labels"]] == pytest.approx(list(expected.shares.values()), abs=1e-5)
    for row in content["regions"]:
        wanted = {LABELS[i]: known[1][0][row["region"], i] for i in range(len(LABELS))}
        assert {label["name"]: label["cosine"] for label in row["labels"]} == pytest.approx(wanted, abs=1e-4)
    names = {category["id"]: category["name"] for category in content["coco"]["categories"]}
    for annotation in content["coco"]["annotations"]:
        mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
        assert (mask == expected.mask(names[annotation["category_id"]])).all()


def test_a_sentence_shows_one_region_and_examples_work(visitor, known, tiny_segmenter):
    visitor.page.locator("#examples img").nth(0).click()
    labelled = visitor.new_picture("")
    visitor.page.locator("#legend li").first.wait_for()
    assert sorted(visitor.legend()) == sorted(LABELS)
    visitor.page.get_by_label("Sentence").click()
    spotlight = visitor.ask("The black RING")
    grounding = tiny_segmenter.refer(known[0], "the black ring")
    assert (spotlight != labelled).any()
    visitor.page.get_by_text(f"region {grounding.region} · cosine {grounding.score:.3f}").wait_for()
    inside = np.array(Image.fromarray(grounding.mask).resize((768, 768)))
    plain = np.array(Image.fromarray(labelled)).mean()
    assert spotlight[~inside].mean() < 0.7 * plain
    content = json.loads(visitor.save("JSON")[1])
    assert content["region"] == grounding.region
    assert content["score"] == pytest.approx(grounding.score, abs=1e-5)
    assert (coco_mask.decode(content["mask"]["segmentation"]).astype(bool) == grounding.mask).all()


def test_a_bad_file_is_one_friendly_line_and_the_page_goes_on(visitor, scene_file):
    large = io.BytesIO()
    Image.new("L", (600, 500)).save(large, "PNG")
    expected = {
        "notes.png": (b"these are my notes", "This file is not an image that can be read"),
        "cut.png": (scene_file.read_bytes()[:20_000], "This file is damaged or truncated"),
        "large.png": (large.getvalue(), "This file has 600 x 500 pixels, more than the limit of 0.25 million"),
    }
    for name, (data, message) in expected.items():
        visitor.upload(name, data)
        alert = visitor.page.get_by_role("alert").filter(has_text=message)
        alert.wait_for()
        assert "\n" not in alert.inner_text()
        assert "textregion-page" not in visitor.page.inner_text("body")
        visitor.remove()
    visitor.upload("scene.png", scene_file.read_bytes())
    assert visitor.new_picture("").shape == (768, 768, 3)


def test_bad_words_are_one_friendly_line_and_the_page_goes_on(visitor, scene_file):
    visitor.upload(scene_file.name, scene_file.read_bytes())
    visitor.new_picture("")
    visitor.page.locator("#text textarea, #text input").first.fill(", ".join(f"thing {i}" for i in range(51)))
    visitor.page.get_by_role("button", name="Show").click()
    visitor.page.get_by_role("alert").filter(has_text="Got 51 labels, more than the limit of 50").wait_for()
    visitor.ask("zebra, <b>sand</b>")
    visitor.page.get_by_text("The tiny model never saw: zebra").wait_for()
    assert sorted(visitor.legend()) == ["<b>sand</b>", "zebra"]


MARKUP = "<img src=x onerror=window.ran=1><b>bold</b>"


def test_html_in_names_labels_and_sentences_is_text(visitor, scene_file):
    visitor.upload(f"{MARKUP}.png".replace("/", "-"), scene_file.read_bytes())
    visitor.new_picture("")
    visitor.ask(f"{MARKUP}, sand, sand")
    visitor.page.locator("#legend").get_by_text(MARKUP).wait_for()
    visitor.click_picture(0.5, 0.5)
    visitor.page.locator("#scores tbody tr").first.wait_for()
    assert MARKUP in {row[0] for row in visitor.scores()}
    text = visitor.page.locator("#text textarea, #text input").first
    text.fill(MARKUP * 20)  # above the limit: a notice and, when it is saved, a toast, which both quote it
    visitor.page.get_by_role("button", name="Show").click()
    visitor.page.get_by_role("alert").filter(has_text="more than the limit of 200").wait_for()
    assert "<img src=x" in visitor.page.locator("#notice").inner_text()
    visitor.page.get_by_label("Sentence").click()
    visitor.ask(MARKUP)
    visitor.page.locator("#legend").get_by_text(MARKUP).wait_for()
    text.fill(MARKUP * 20)
    visitor.page.get_by_role("button", name="Picture (PNG)").click()
    toast = visitor.page.get_by_test_id("toast-body")
    toast.wait_for()
    assert "<img src=x" in toast.inner_text()
    assert toast.locator("img, b").count() == 0
    assert visitor.page.locator("#notice img, #notice b, #legend img, #legend b, #scores img").count() == 0
    assert visitor.page.evaluate("window.ran") is None


def test_an_image_that_was_deleted_meanwhile_is_asked_for_again(visitor, server, scene_file):
    visitor.upload("gone.png", scene_file.read_bytes() + b" ")
    visitor.new_picture("")
    (path,) = server.files.rglob("gone.png")
    path.unlink()
    visitor.page.get_by_role("button", name="Show").click()
    visitor.page.get_by_text("no longer kept here; upload it again").first.wait_for()


def test_a_file_above_the_limit_of_bytes_is_refused(visitor):
    noise = np.random.default_rng(0).integers(0, 256, (1200, 400, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "PNG")
    visitor.upload("noise.png", buffer.getvalue())
    visitor.page.get_by_text("maximum allowed size").or_(visitor.page.get_by_text("exceeds")).first.wait_for()


def test_two_users_each_see_their_own_image(visitor, browser, server, png):
    one, other = visitor, Visitor(browser, server, width=390, height=844)
    one.upload("scene.png", png(11, 256, 200))
    other.upload("scene.png", png(20, 200, 256))
    one.new_picture("")
    other.new_picture("")
    assert one.ask("sand, brick").shape == (600, 768, 3)
    assert other.ask("sand, brick").shape == (768, 600, 3)
    assert one.ask("brick, black shape").shape == (600, 768, 3)
    fits = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
    assert other.page.evaluate(fits)
    other.close()


def test_the_server_asked_the_network_for_nothing(server):
    assert [line for line in server.network.read_text().splitlines() if "127.0.0.1" not in line] == []
