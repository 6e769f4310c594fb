"""The table of presets, on the terminal and in docs/models.md."""

import re
from pathlib import Path

from textregion.cli.models import COLUMNS, list_presets, preset_row, presets, readme_table
from textregion.presets import preset_names


def test_the_table_has_a_row_for_every_preset_and_quotes_published_figures_only():
    rows = {name: preset_row(name) for name in preset_names()}
    assert all(row[0] == name for name, row in rows.items())
    assert rows["clip-vit-b16"] == (
        "clip-vit-b16",
        "ViT-B-16-quickgelu openai",
        "512",
        "336",
        "SAM 2.1 large",
        "16",
        "1.5 GB",
        "–",
        "VOC21 70.9, COCO-Stuff 28.7, ADE20K 22.8, average of eight 46.6 mIoU",
    )
    assert rows["tiny"][2:4] == ("128", "96")
    published = {name for name, row in rows.items() if row[-1] != "–"}
    assert published == {"clip-vit-b16", "openclip-vit-h14", "clip-vit-b16-eomt"}


def test_what_a_preset_needs_besides_its_files_is_told():
    assert preset_row("clip-vit-l14-336-eomt")[4:8] == (
        "eomt",
        "–",
        "1.7 GB",
        "setup_env.sh --transformers; tue-mps/coco_panoptic_eomt_large_640; a --memory of yours",
    )
    assert preset_row("pe-core-l14-336-sam3")[4] == "sam3"
    assert "facebook/sam3 (gated: your token)" in preset_row("pe-core-l14-336-sam3")[7]
    assert preset_row("tipsv2-b14")[7] == "setup_env.sh --transformers"
    assert preset_row("siglip2-b16")[7] == "–"


def test_the_markdown_table_is_a_table(capsys):
    lines = readme_table().splitlines()
    assert len(lines) == len(preset_names()) + 2
    assert {line.count("|") for line in lines} == {len(COLUMNS) + 1}
    assert presets(["--markdown"]) == 0
    assert capsys.readouterr().out == readme_table() + "\n"
    assert presets([]) == 0
    assert capsys.readouterr().out == list_presets() + "\n"
    lines = list_presets().splitlines()
    assert lines[1].split()[:3] == ["tiny", "tiny", "world"]
    assert max(map(len, lines)) <= 120
    assert lines[len(preset_names()) + 2] == "needs:"
    assert "  tipsv2-b14: setup_env.sh --transformers" in lines
    assert lines[-4] == "published result (theirs):"


PAGE = Path(__file__).resolve().parents[3] / "docs" / "models.md"
BETWEEN_MARKERS = re.compile(r"<!-- presets -->\n(.*?)\n<!-- /presets -->", re.DOTALL)


def test_the_readmes_table_is_current():
    (found,) = BETWEEN_MARKERS.findall(PAGE.read_text(encoding="utf-8"))
    assert found == readme_table(), "run textregion presets --markdown and put it between the markers"
