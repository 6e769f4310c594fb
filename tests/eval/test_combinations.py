"""eval_all_semantic.py: backbones x masks x recipes x memories, what each run is asked for, and their one table."""

import contextlib
import io
from types import SimpleNamespace

import pytest
import tiny_transformers
from index_worlds import QUICK, write_scenes

from eval import semantic_cli
from eval.prepare.converters import draw_scenes, scenes_folder
from eval.semantic_cli import _command, all_parser, combinations, main_all, overview
from textregion.errors import InputError
from textregion.index import RegionIndex


def rows(*words: str) -> list:
    return combinations(all_parser().parse_args(list(words)))


def asked(row, *words: str) -> list[str]:
    """What eval_semantic.py is told of a row, without its config and places."""
    options = row.options(all_parser().parse_args(list(words)))
    command = _command(options, row.preset, "voc21", options.work_dir)
    return command[command.index("--work-dir") + 2 :]


def test_every_backbone_is_combined_with_every_source_recipe_and_memory():
    words = ["--presets", "tiny", "clip-vit-b16", "--mask_sources", "sam2", "eomt", "sam3-concepts"]
    words += ["--recipes", "semantic", "corrclip", "--memories", "none", "banks/{preset}-{recipe}.lance"]
    words += ["--sam3_checkpoint", "sam3", "--sam2_checkpoint", "weights/{masks}"]
    made = rows(*words)
    names = [row.name for row in made]
    assert len(set(names)) == 2 * 2 * 2 * 2 + 1
    assert names[:2] == [
        "tiny,masks=sam2,recipe=semantic,memory=none",
        "tiny,masks=sam2,recipe=semantic,memory=banks-tiny-semantic.lance",
    ]
    told = asked(made[15], *words)
    assert told[:2] == ["--preset", "clip-vit-b16"]
    pairs = dict(zip(told[::2], told[1::2], strict=True))
    assert (pairs["--masks"], pairs["--recipe"]) == ("eomt", "corrclip")
    assert pairs["--memory"] == "banks/clip-vit-b16-corrclip.lance"
    assert pairs["--sam2_checkpoint"] == "weights/eomt"
    assert "--memory" not in asked(made[14], *words)
    assert "--sam3_checkpoint" not in told
    last = asked(made[16], *words)
    assert made[16].name == "sam3-concepts"
    assert {"--preset", "--masks", "--recipe", "--memory"}.isdisjoint(last)
    assert last[last.index("--method") + 1] == "sam3-concepts"
    assert last[last.index("--sam3_checkpoint") + 1] == "sam3"


def test_without_plural_flags_a_row_is_a_backbone():
    assert [row.name for row in rows("--presets", "tiny", "clip-vit-b16", "--masks", "slic")] == [
        "tiny",
        "clip-vit-b16",
    ]
    assert [row.name for row in rows("--mask_sources", "sam3-concepts")] == ["sam3-concepts"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--masks", "slic", "--mask_sources", "sam2"], "give either --mask_sources or --masks, not both"),
        (["--recipe", "demo", "--recipes", "demo"], "give either --recipes or --recipe, not both"),
        (["--method", "sam3-concepts", "--recipes", "demo"], "give it as one of --mask_sources instead"),
    ],
)
def test_flags_that_exclude_each_other(words, said):
    with pytest.raises(InputError, match=said):
        rows(*words)


class InProcess:
    """As subprocess.Popen of eval_semantic.py, in this process."""

    def __init__(self, command, stdout, stderr):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            self.code = semantic_cli.main(command[2:])
        stdout.write(printed.getvalue().encode())


def test_the_combinations_are_rows_of_one_table(tmp_path, monkeypatch, capsys):
    """One recipe with and without a memory, and SAM 3 asked with words, on two scenes."""
    monkeypatch.setenv("TEXTREGION_DATA", str(tmp_path))
    monkeypatch.setattr(semantic_cli, "subprocess", SimpleNamespace(Popen=InProcess))
    monkeypatch.setattr(semantic_cli, "_wait", lambda process: process.code)
    draw_scenes(scenes_folder(tmp_path / "tiny_world", 2, 64), 2, 64)
    write_scenes(tmp_path / "photos", [7])
    table = RegionIndex.create(tmp_path / "tiny-demo.lance", "tiny", **{**QUICK, "recipe": "demo"})
    table.add([tmp_path / "photos" / "7.png"])
    tiny_transformers.sam3_concepts().save_pretrained(tmp_path / "sam3")
    words = ["--preset", "tiny", "--datasets", "tiny", "--device", "cpu", "--work-dir", str(tmp_path / "all")]
    words += ["--mask_sources", "slic", "sam3-concepts", "--sam3_checkpoint", str(tmp_path / "sam3")]
    words += ["--recipes", "demo", "--memories", "none", str(tmp_path / "{preset}-{recipe}.lance")]
    words += ["--resize_method", "resize", "--cfg-options", "benchmark.scenes=2", "benchmark.size=64"]
    assert main_all(words) == 0, capsys.readouterr().err
    lines = (tmp_path / "all" / "table.md").read_text().splitlines()
    assert lines[0].startswith("| backbone | masks | recipe | memory | voc21 |")
    ours = [[cell.strip() for cell in line.split("|")[1:5]] for line in lines[2:5]]
    assert [row[1:3] for row in ours] == [["slic", "demo"]] * 2 + [["", ""]]
    assert [row[0].partition(" ")[0] for row in ours] == ["tiny"] * 2 + ["sam3-concepts"]
    assert [bool(row[3]) for row in ours] == [False, True, False]
    assert ours[1][3].endswith("), α 0.5, K 20")
    assert "masks=" not in ours[0][0]


def test_published_rows_name_all_methods_as_published():
    lines = overview({("ours", "sam2", "semantic", ""): {"voc21": 1.0}})
    assert lines[2].startswith("| ours | sam2 | semantic |  | 1.0 |")
    published = {
        cells[0].removesuffix(" (published)"): cells[-1]
        for line in lines[3:]
        if (cells := [cell.strip() for cell in line.strip("| ").split("|")])[0].endswith("(published)")
    }
    assert len(published) == len(lines) - 3
    averages = {
        "TextRegion, clip-vit-b16": "46.6",
        "TextRegion, openclip-vit-h14": "49.5",
        "CorrCLIP, clip-vit-b16": "48.7",
        "OV-Stitcher, clip-vit-b16": "50.7",
        "CorrCLIPv2, MetaCLIP B": "57.8",
        "CorrCLIPv2, MetaCLIP L, the least told": "58.9",
        "CorrCLIPv2, MetaCLIP L, the most told": "59.5",
        "SegEarth-OV3, SAM 3, asked for words": "63.0",
    }
    assert averages.items() <= published.items()


def test_a_memory_that_is_not_there_is_told_before_anything_runs(tmp_path, capsys):
    words = ["--presets", "tiny", "--datasets", "tiny", "--memories", "none", str(tmp_path / "{preset}.lance")]
    assert main_all([*words, "--work-dir", str(tmp_path / "out")]) == 2
    assert f"no region index at {tmp_path / 'tiny.lance'}; make one" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
