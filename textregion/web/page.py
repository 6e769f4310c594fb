"""The page: its layout, and which function answers which event. The only module that knows gradio's components."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from textregion.errors import InputError
from textregion.web import panels
from textregion.web.pictures import SWITCHES
from textregion.web.session import Workbench
from textregion.web.views import EMPTY, FILES, LABELS, SENTENCE, Controls, View, save, sentence_case, share_of, view

TITLE = "TextRegion"
EXPLANATION = "Label every region of an image with your own words. It is encoded once; new words take no new encoding."
TINY_NOTE = (
    "These are tiny demo models, trained on drawn scenes only. For photographs: "
    "<code>--serve --preset clip-vit-l14-336</code>"
)
SAVE_NAMES = {"picture": "Picture (PNG)", "labels": "Label map (PNG)", "numbers": "Scores and masks (JSON)"}
CSS = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
KEPT_SECONDS = 4 * 3600  # how long files are kept while the server runs; at its end all go
FOLLOW_LINK = "() => { setTimeout(() => document.querySelector('#download')?.click(), 0); }"
MODEL = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private", "preprocess": False}


def theme() -> gr.themes.Base:
    """Calm colours and the fonts that the visitor's system has: nothing to load."""
    return gr.themes.Default(
        primary_hue="teal",
        neutral_hue="slate",
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    )


def build_page(bench: Workbench, examples: Sequence[Sequence[str]]) -> gr.Blocks:
    """The page around a workbench. examples: (image file, mode, text) each."""
    page = gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(300, KEPT_SECONDS))
    with page:
        gr.HTML(header(bench.preset), elem_classes="tr-head", padding=False)
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=300):
                controls, button = build_controls()
                drawn = gr.Dataset(
                    components=controls[:1],
                    samples=[[path] for path, _, _ in examples],
                    type="index",
                    label="Drawn scenes",
                    elem_id="examples",
                )
            with gr.Column(scale=7, min_width=300):
                shown = build_results()
                with gr.Row(visible=False, elem_id="saving") as saving:
                    savers = {
                        kind: gr.Button(name, size="sm", min_width=100, elem_id=f"save-{kind}")
                        for kind, name in SAVE_NAMES.items()
                    }
        link = gr.DownloadButton(visible="hidden", elem_id="download")
        point = gr.State(None)
        connect(bench, controls, button, [*shown, saving], point)
        drawn.click(lambda index: list(examples[index]), drawn, controls[:3], show_progress="hidden", **MODEL)
        for kind, saver in savers.items():
            connect_download(bench, controls, kind, saver, link)
    return page


def header(preset: str) -> str:
    """Title, one sentence, and which models these are."""
    note = TINY_NOTE if preset == "tiny" else f"Preset {escape(preset)}."
    return f'<h1>{TITLE}</h1><p>{EXPLANATION}</p><p class="tr-models">{note}</p>'


def build_controls() -> tuple[list[Component], gr.Button]:
    """What a user sets, in the order of `Controls`, and the button that asks."""
    image = gr.Image(
        label="Image", type="filepath", image_mode=None, sources=["upload", "clipboard"], height=200, elem_id="image"
    )
    mode = gr.Radio([LABELS, SENTENCE], value=LABELS, show_label=False, container=False, elem_id="mode")
    with gr.Row(elem_id="ask"):
        text = gr.Textbox(
            placeholder="dog, sofa, floor", show_label=False, container=False, elem_id="text", scale=6, min_width=160
        )
        button = gr.Button("Show", variant="primary", elem_id="show", scale=1, min_width=72)
    threshold = gr.Slider(0, 1, 0, step=0.05, label="Threshold (below it: the first label)", elem_id="threshold")
    opacity = gr.Slider(0, 1, 0.6, step=0.05, label="Opacity", elem_id="opacity")
    switches = gr.CheckboxGroup(
        list(SWITCHES), value=["masks", "names"], show_label=False, container=False, elem_id="switches"
    )
    return [image, mode, text, threshold, opacity, switches], button


def build_results() -> list[Component]:
    """What a user gets, in the order of `updates`."""
    notice = gr.HTML(panels.notice(EMPTY, "hint"), elem_id="notice", padding=False)
    picture = gr.Image(
        label="Result", interactive=False, format="png", buttons=["fullscreen"], height=480, elem_id="result"
    )
    legend = gr.HTML(elem_id="legend", padding=False)
    return [notice, picture, legend, gr.HTML(elem_id="scores", padding=False)]


def updates(result: View) -> list[Any]:
    """New values for what `build_results` made, and whether there is anything to save."""
    return [result.notice, result.picture, result.legend, result.scores, gr.update(visible=result.answered)]


def connect(
    bench: Workbench, controls: list[Component], button: gr.Button, shown: list[Component], point: gr.State
) -> None:
    """Answer every change of a control and every click in the picture; a new image forgets the last click."""
    image, mode, text, *looks = controls

    def new_image(*values: Any) -> list[Any]:
        return [*updates(view(bench, Controls(*values))), None]

    def refresh(*values: Any) -> list[Any]:
        return updates(view(bench, Controls(*values[:-1]), values[-1]))

    def select(event: gr.SelectData, *values: Any) -> list[Any]:
        wanted = Controls(*values[:-1])
        try:
            clicked = share_of(bench.open(wanted.path).shown.shape[:2], event.index)
        except InputError:
            clicked = values[-1]
        return [*updates(view(bench, wanted, clicked)), clicked]

    image.change(new_image, controls, [*shown, point], show_progress_on=shown[1], trigger_mode="always_last", **MODEL)
    for ask in (button.click, text.submit, mode.change, *(look.change for look in looks)):
        ask(refresh, [*controls, point], shown, show_progress="hidden", trigger_mode="always_last", **MODEL)
    shown[1].select(
        select, [*controls, point], [*shown, point], show_progress="hidden", trigger_mode="always_last", **MODEL
    )


def connect_download(
    bench: Workbench, controls: list[Component], kind: str, button: gr.Button, link: gr.DownloadButton
) -> None:
    """Make a file when its button is clicked, then follow the hidden link to it."""
    assert kind in FILES

    def make(*values: Any) -> str:
        try:
            name, data = save(bench, Controls(*values), kind)
        except InputError as error:
            raise gr.Error(sentence_case(error), print_exception=False) from error
        return save_bytes_to_cache(data, name, get_upload_folder())

    made = button.click(make, controls, link, show_progress="minimal", **MODEL)
    made.success(js=FOLLOW_LINK)
