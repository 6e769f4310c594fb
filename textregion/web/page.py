"""The page: layout, events, and the app that serves it. The only module that knows gradio."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.blocks import Block
from gradio.components import Component
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder
from PIL import Image

from textregion.errors import InputError
from textregion.labels import join_labels
from textregion.outputs.pictures import sentences
from textregion.tiny.scenes import draw_scene
from textregion.web import api, views
from textregion.web.cached_segmenter import CachedSegmenter, Limits
from textregion.web.gate import Gate
from textregion.web.search import EMPTY, TableView
from textregion.web.uploads import Uploads
from textregion.web.views import DOWNLOADS, LABELS, SENTENCE, SWITCHES, Controls, PageContent, page_content

TITLE = "TextRegion"
EXPLANATION = "Label every region of an image with your own words. It is encoded once; new words take no new encoding."
TINY_NOTE = (
    "These are tiny demo models, trained on drawn scenes only. For photographs: "
    "<code>--serve --preset clip-vit-l14-336</code>"
)
EXAMPLES = (  # (seed, mode, text) of drawn scenes; None: all names in the scene
    (11, LABELS, None),
    (19, LABELS, None),
    (15, SENTENCE, "the green hexagon"),
    (18, LABELS, "blue shape, orange shape, pink shape, yellow shape, brick, grass"),
    (9, SENTENCE, "the yellow ring"),
    (20, LABELS, None),
)
FONT = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"]  # what a visitor's system has
MONOSPACE = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]
CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
KEPT_SECONDS = 4 * 3600  # how long files are kept while the server runs; at its end all go
FOLLOW_LINK = "() => { setTimeout(() => document.querySelector('#download')?.click(), 0); }"
MODEL = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private", "preprocess": False}


def build_app(
    segmenter: Any,
    preset: str,
    limits: Limits,
    files: Path,
    local: bool,
    caution: str = "",
    table: TableView | None = None,
) -> Gate:
    """The ASGI app: the page behind its gate.

    segmenter, preset, limits, caution: see `CachedSegmenter`. files: see `server.temporary_files`. local: see `Gate`.
    table: what the tab Search asks; None for no such tab.
    """
    uploads = Uploads(files, limits)
    model = CachedSegmenter(segmenter, preset, limits, caution)
    page = build_page(model, draw_examples(files), uploads, table)
    calls = build_api(page, model, uploads, table)
    page.temp_file_sets.append(uploads.paths)
    page.queue(max_size=limits.queue_size, default_concurrency_limit=1, api_open=False)
    theme = gr.themes.Default(primary_hue="teal", neutral_hue="slate", font=FONT, font_mono=MONOSPACE)
    app = gr.mount_gradio_app(
        FastAPI(openapi_url=None),
        page,
        path="/",
        theme=theme,
        css=CSS,
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=limits.max_bytes,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
    )
    page.has_launched = True  # else gradio takes any path of this machine for an uploaded file
    return Gate(app, uploads, local, calls)


def build_api(
    page: gr.Blocks, model: CachedSegmenter, uploads: Uploads, table: TableView | None
) -> dict[str, Callable]:
    """Give the page's API its functions; returns them by their names. Their docstrings are what programs read."""

    def replied(ask: Callable[[], tuple]) -> tuple:
        uploads.make_room()
        try:
            return keep_files(ask())
        except InputError as error:
            raise gr.Error(views.sentence_case(error), print_exception=False) from error

    def segment(image: dict, labels: str, threshold: float = 0.0) -> tuple[dict, dict, dict]:
        """Label every pixel: (label map as PNG, what its values mean, scores and masks of all regions as JSON)."""
        return replied(lambda: api.segment(model, image, labels, threshold))

    def refer(image: dict, sentence: str) -> tuple[dict, dict]:
        """The region that a sentence refers to: (its mask as PNG, its box, its score and those of all regions)."""
        return replied(lambda: api.refer(model, image, sentence))

    def search(words: str, without: str = "", one_per_image: bool = False) -> tuple[str, list]:
        """Regions of the table that words describe: (a line about them, a row each, best first)."""
        return replied(lambda: api.search(table, words, without, one_per_image))

    calls = {"segment": segment, "refer": refer} | ({} if table is None else {"search": search})
    with page:
        for name, call in calls.items():
            gr.api(call, api_name=name, concurrency_id="model", concurrency_limit=1)
    return calls


def keep_files(value: Any) -> Any:
    """The value with each NamedFile in it saved for its reader and replaced by what gradio sends of a file."""
    if isinstance(value, api.NamedFile):
        path = save_bytes_to_cache(value.data, value.name, get_upload_folder())
        return {"path": path, "orig_name": value.name, "meta": {"_type": "gradio.FileData"}}
    if isinstance(value, dict):
        return {name: keep_files(part) for name, part in value.items()}
    return type(value)(map(keep_files, value)) if isinstance(value, (list, tuple)) else value


def draw_examples(files: Path) -> list[list[str]]:
    """The example scenes as PNG files in a folder: (file, mode, text) each."""
    rows = []
    for seed, mode, text in EXAMPLES:
        scene = draw_scene(seed, distinct_colours=True)
        path = files / f"scene_{seed}.png"
        Image.fromarray(scene.image).save(path)
        rows.append([str(path), mode, text or join_labels(scene.labels)])
    return rows


def build_page(
    model: CachedSegmenter, examples: Sequence[Sequence[str]], uploads: Uploads, table: TableView | None = None
) -> gr.Blocks:
    """The page around a model. examples: (image file, mode, text) each. uploads: makes room for what is made.

    table: what the tab Search asks, which then comes first.
    """
    trained_tiny = model.preset == "tiny" and not model.caution
    models = TINY_NOTE if trained_tiny else escape(sentences(f"preset {model.preset}", model.caution))
    header = f'<h1>{TITLE}</h1><p>{EXPLANATION}</p><p class="tr-models">{models}</p>'
    page = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(300, KEPT_SECONDS))
    with page:
        gr.HTML(header, elem_classes="tr-head", padding=False)
        if table is None:
            build_labelling(model, examples, uploads)
        else:
            with gr.Tabs(elem_id="tabs"):
                with gr.Tab("Search", id="search"):
                    build_search(table, uploads)
                with gr.Tab("Label", id="label"):
                    build_labelling(model, examples, uploads)
    return page


def build_labelling(model: CachedSegmenter, examples: Sequence[Sequence[str]], uploads: Uploads) -> None:
    """Image and words on the left, the answer on the right."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=300):
            controls, button = build_controls()
            scenes = {"label": "Drawn scenes", "samples": [[path] for path, _, _ in examples]}
            drawn = gr.Dataset(components=controls[:1], **scenes, type="index", elem_id="examples")
        with gr.Column(scale=7, min_width=300):
            notice = gr.HTML(views.notice(views.EMPTY, "hint"), elem_id="notice", padding=False)
            frame = {"interactive": False, "format": "png", "buttons": ["fullscreen"], "height": 480}
            picture = gr.Image(label="Result", **frame, elem_id="result")
            shown = [notice, picture, *(gr.HTML(elem_id=name, padding=False) for name in ("legend", "scores"))]
            with gr.Row(visible=False, elem_id="saving") as saving:
                savers = {
                    kind: gr.Button(name, size="sm", min_width=100, elem_id=f"save-{kind}")
                    for kind, (name, _, _) in DOWNLOADS.items()
                }
    link = gr.DownloadButton(visible="hidden", elem_id="download")
    point = gr.State(None)
    connect(model, controls, button, [*shown, saving], point, uploads)
    drawn.click(lambda index: list(examples[index]), drawn, controls[:3], show_progress="hidden", **MODEL)
    for kind, saver in savers.items():
        made = saver.click(partial(save_file, model, uploads, kind), controls, link, show_progress="minimal", **MODEL)
        made.success(js=FOLLOW_LINK)


def build_search(table: TableView, uploads: Uploads) -> None:
    """Words, the grid of hits, and the image of the one that was clicked."""
    with gr.Row(elem_id="search-ask"):
        quiet = {"show_label": False, "container": False}
        words = gr.Textbox(placeholder="a red mug", **quiet, elem_id="search-words", scale=5, min_width=160)
        without = gr.Textbox(placeholder="but not …", **quiet, elem_id="search-not", scale=2, min_width=100)
        single = gr.Checkbox(label="one hit an image", container=False, elem_id="search-single", scale=0, min_width=185)
        button = gr.Button("Search", variant="primary", elem_id="search-go", scale=1, min_width=80)
    notice = gr.HTML(views.notice(f"{EMPTY} ({table.title})", "hint"), elem_id="search-notice", padding=False)
    frame = {"show_label": False, "interactive": False, "format": "png", "buttons": []}
    grid = gr.Gallery(**frame, columns=6, object_fit="contain", allow_preview=False, height="auto", elem_id="hits")
    about = gr.HTML(elem_id="hit-about", padding=False)
    opened = gr.Image(**{**frame, "buttons": ["fullscreen"]}, visible=False, elem_id="hit-image")
    hits = gr.State([])

    def ask(*values: Any) -> list[Any]:
        uploads.make_room()
        try:
            found = table.search(*values)
        except InputError as error:
            return [views.notice(escape(views.sentence_case(error)), "error"), [], "", gr.update(visible=False), []]
        told = views.notice(escape(found.note), "hint")
        return [told, found.pictures, "", gr.update(visible=False), found.hits]

    def choose(event: gr.SelectData, known: list) -> list[Any]:
        uploads.make_room()
        try:
            picture, line = table.open(known, event.index)
        except InputError as error:
            return [views.notice(escape(views.sentence_case(error)), "error"), gr.update(visible=False)]
        return [views.notice(escape(line), "hint"), gr.update(value=picture, visible=True)]

    asked, shown = [words, without, single], [notice, grid, about, opened, hits]
    for event in (button.click, words.submit, without.submit):
        event(ask, asked, shown, show_progress_on=grid, trigger_mode="always_last", **MODEL)
    grid.select(choose, hits, [about, opened], show_progress="hidden", trigger_mode="always_last", **MODEL)


def save_file(model: CachedSegmenter, uploads: Uploads, kind: str, *values: Any) -> str:
    """Make the file of a download for some values of the controls; returns its path, which the hidden link leads to."""
    uploads.make_room()
    try:
        name, data = views.save(model, Controls(*values), kind)
    except InputError as error:
        raise gr.Error(escape(views.sentence_case(error)), print_exception=False) from error
    return save_bytes_to_cache(data, name, get_upload_folder())


def build_controls() -> tuple[list[Component], gr.Button]:
    """What a user sets, in the order of `Controls`, and the button that asks."""
    image = gr.Image(
        label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=200, elem_id="image"
    )
    mode = gr.Radio([LABELS, SENTENCE], value=LABELS, show_label=False, container=False, elem_id="mode")
    with gr.Row(elem_id="ask"):
        text = gr.Textbox(
            placeholder="dog, sofa, floor",
            show_label=False,
            container=False,
            elem_id="text",
            scale=6,
            min_width=160,
            max_lines=6,
        )
        button = gr.Button("Show", variant="primary", elem_id="show", scale=1, min_width=72)
    threshold = gr.Slider(0, 1, 0, step=0.05, label="Threshold (below it: the first label)", elem_id="threshold")
    opacity = gr.Slider(0, 1, 0.6, step=0.05, label="Opacity", elem_id="opacity")
    switches = gr.CheckboxGroup(
        list(SWITCHES), value=["masks", "names"], show_label=False, container=False, elem_id="switches"
    )
    return [image, mode, text, threshold, opacity, switches], button


def updates(content: PageContent) -> list[Any]:
    """New values for notice, picture, legend and scores, and whether there is anything to save."""
    return [content.notice, content.picture, content.legend, content.scores, gr.update(visible=content.answered)]


def connect(
    model: CachedSegmenter,
    controls: list[Component],
    button: gr.Button,
    shown: list[Block],
    point: gr.State,
    uploads: Uploads,
) -> None:
    """Answer every change of a control and every click in the picture; a new image forgets the last click."""
    image, mode, text, *others = controls

    def new_image(*values: Any) -> Iterator[list[Any]]:
        if values[0]:
            yield [views.notice(views.ENCODING, "hint"), *[gr.skip()] * len(shown)]
        for content in refresh(*values, None):
            yield [*content, None]

    def refresh(*values: Any) -> Iterator[list[Any]]:
        uploads.make_room()
        wanted = Controls(*values[:-1])
        for told in views.words_read(model, wanted):
            yield [told, *[gr.skip()] * (len(shown) - 1)]
        yield updates(page_content(model, wanted, values[-1]))

    def select(event: gr.SelectData, *values: Any) -> list[Any]:
        uploads.make_room()
        wanted = Controls(*values[:-1])
        try:
            clicked = views.share_of(model.open(wanted.path).shown.shape[:2], event.index)
        except InputError:
            clicked = values[-1]
        return [*updates(page_content(model, wanted, clicked)), clicked]

    image.change(new_image, controls, [*shown, point], show_progress_on=shown[1], trigger_mode="always_last", **MODEL)
    for ask in (button.click, text.submit, mode.change, *(other.change for other in others)):
        ask(refresh, [*controls, point], shown, show_progress="hidden", trigger_mode="always_last", **MODEL)
    asked, answer = [*controls, point], [*shown, point]
    shown[1].select(select, asked, answer, show_progress="hidden", trigger_mode="always_last", **MODEL)
