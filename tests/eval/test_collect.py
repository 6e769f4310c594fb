"""results.json files as one table: rows, columns, marks, published figures, formats."""

import csv
import io
import json
import math

import pandas
import pytest

from eval.collect import as_csv, as_latex, as_markdown, main, published_rows, read_published, read_rows, table
from eval.results import Published, Results
from textregion.errors import InputError


def save(folder, mIoU=50.0, benchmark="tiny", backbone="tiny", recipe="semantic", model=None, cell=None, **content):
    """A run's results.json, as the segmentation program writes it."""
    given = {"preset": backbone, "recipe": "auto", "device": "cpu", **(model or {})}
    resolved = {"config": {"recipe": {"name": recipe}, "scale": [192, 96]}, "mask_source": given.get("masks", "sam2")}
    config = {"model": given, "resolved": resolved}
    metrics = {"mIoU": mIoU, "aAcc": 90.0}
    Results("semantic segmentation", benchmark, backbone, metrics, 3, config, {"name": recipe}).save(folder)
    path = folder / "results.json"
    told = {**json.loads(path.read_text()), **content}
    path.write_text(json.dumps({key: value for key, value in told.items() if value is not None}))
    if cell:
        (folder / "cell.json").write_text(json.dumps(cell))


def test_every_run_is_a_row_with_the_options_that_differ(tmp_path):
    save(tmp_path / "a", 1 / 3, model={"points_per_side": 8, "scale": [1, 1]})
    save(tmp_path / "b/c", math.nan, recipe="demo", model={"points_per_side": 8, "masks": "slic"})
    header, cells = table(read_rows(tmp_path))
    assert header[:2] == ["benchmark", "backbone"]
    options = {name: [line[header.index(name)] for line in cells] for name in ("recipe", "masks")}
    assert options == {"recipe": ["semantic", "demo"], "masks": ["sam2", "slic"]}
    assert "points_per_side" not in header, "it is the same everywhere"
    assert [line[header.index("mIoU")] for line in cells] == [1 / 3, None]
    assert [line[-1] for line in cells] == [str(tmp_path / "a"), str(tmp_path / "b/c")]


def test_rows_are_in_the_order_of_their_numbers(tmp_path):
    for name in ("points=16", "points=4", "points=8", "3/a"):
        save(tmp_path / name)
    found = [row.run.removeprefix(f"{tmp_path}/") for row in read_rows(tmp_path)]
    assert found == ["3/a", "points=4", "points=8", "points=16"]


def test_csv_has_full_precision_and_pandas_reads_it(tmp_path):
    save(tmp_path / "a", 1 / 3)
    save(tmp_path / "b", math.nan, recipe='odd, "quoted"')
    frame = pandas.read_csv(io.StringIO(as_csv(read_rows(tmp_path))))
    assert frame["mIoU"][0] == 1 / 3
    assert math.isnan(frame["mIoU"][1])
    assert frame["recipe"].tolist() == ["semantic", 'odd, "quoted"']
    assert frame["items"].tolist() == [3, 3]


def test_marks_of_results_that_tell_them_and_of_those_that_do_not(tmp_path):
    command = ["python", "eval_semantic.py", "--limit=5", "--cfg_options", "model.x=1", "model.y=2", "--resume"]
    save(tmp_path / "a", marks=["first 2 images"], resumed_anyway=["code.commit: was 1, now 2"])
    save(tmp_path / "b", marks=None, cell={"varied": {"model.y": 2}, "command": command})
    save(tmp_path / "c", marks=None, model={"random_weights": True})
    save(tmp_path / "d", marks=None, cell={"varied": {}, "command": ["x", "--images", "list.txt", "--random_weights"]})
    save(tmp_path / "e")
    rows = read_rows(tmp_path)
    assert [row.marks for row in rows] == [
        ("first 2 images", "resumed with another identity"),
        ("first 5 images", "model.x=1"),
        ("random weights",),
        ("images of list.txt", "random weights"),
        (),
    ]
    assert rows[1].options["y"] == 2


def test_results_of_the_other_tasks(tmp_path):
    given = {"given": {"scale": "(192, 96)"}, "config": {"scale": [192, 96], "recipe": {"name": "demo"}}}
    config = {"model": {"preset": "tiny", **given}, "data": {"proposals": "gt", "splits": ["a"]}}
    Results("referring expressions", "refcoco", "tiny", {"accuracy": 5.0}, 2, config, {"name": "demo"}).save(tmp_path)
    (row,) = read_rows(tmp_path)
    assert row.options == {"scale": [192, 96], "recipe": "demo", "proposals": "gt"}


FIGURES = [
    Published("TextRegion", "clip-vit-b16", "voc21", 70.9, "mIoU", "a paper"),
    Published("TextRegion", "clip-vit-b16", "ade20k", 22.8, "mIoU", "a paper"),
    Published("RegionSpot", "BL", "LVIS box AP", 23.7, "AP", "its authors"),
    Published("RegionSpot", "BL", "LVIS mask AP", 20.2, "AP", "its authors"),
]


def test_published_figures_are_rows_that_say_so(tmp_path):
    save(tmp_path / "a", benchmark="voc21")
    save(tmp_path / "b", benchmark="lvis")
    rows = read_rows(tmp_path)
    ours, theirs = rows, published_rows(rows, FIGURES)
    assert [(row.benchmark, row.backbone, row.metrics, row.source) for row in theirs] == [
        ("voc21", "TextRegion, clip-vit-b16 (published)", {"mIoU": 70.9}, "published: a paper"),
        ("lvis", "RegionSpot, BL (published)", {"box AP": 23.7, "mask AP": 20.2}, "published: its authors"),
    ]
    lines = list(csv.DictReader(io.StringIO(as_csv([*ours, *theirs]))))
    assert [line["source"] for line in lines] == ["measured"] * 2 + ["published: a paper", "published: its authors"]
    assert lines[2]["items"] == ""


def test_latex_is_escaped_and_ruled(tmp_path):
    save(tmp_path / "a", 12.346, benchmark="voc21", backbone="a_b&c%", marks=["50% of #1 {x}^2 ~ \\y"])
    rows = read_rows(tmp_path)
    lines = as_latex([*rows, *published_rows(rows, FIGURES)]).splitlines()
    assert lines[1] == r"\begin{tabular}{llrrrrll}"
    assert [line for line in lines if line.startswith(r"\t") or "rule" in line] == [
        r"\toprule",
        r"\midrule",
        r"\midrule",
        r"\bottomrule",
    ]
    marks = r"50\% of \#1 \{x\}\^{}2 \textasciitilde{} \textbackslash{}y"
    assert lines[5] == rf"voc21 & a\_b\&c\% & 12.35 & 90.00 & 3 & 0 & {marks} & measured \\"
    assert lines[7].startswith(r"voc21 & TextRegion, clip-vit-b16 (published) & 70.90 &  &  &  &  & published: a paper")


def test_the_program_prints_and_writes(tmp_path, capsys):
    save(tmp_path / "out/a", benchmark="voc21")
    (tmp_path / "mine.yaml").write_text(
        "figures:\n- {method: Ours, backbone: B, where: voc21, value: 1, unit: mIoU, source: notes}\n"
    )
    outputs = [str(tmp_path / f"table{ending}") for ending in (".csv", ".md", ".tex")]
    flags = ["--published", str(tmp_path / "mine.yaml"), "--output", *outputs]
    assert main([str(tmp_path / "out"), *flags]) == 0
    said = capsys.readouterr().out
    assert said == (tmp_path / "table.md").read_text()
    assert "| voc21 | Ours, B (published) | 1 |" in said
    assert main([str(tmp_path / "out"), "--published"]) == 0
    assert "| voc21 | TextRegion, clip-vit-b16 (published) | 70.90 |" in capsys.readouterr().out
    assert main([str(tmp_path / "out"), "--output", str(tmp_path / "table.xlsx")]) == 2
    assert "ends with one of .csv, .md, .tex" in capsys.readouterr().err


def test_what_is_no_result_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no results\.json below"):
        read_rows(tmp_path)
    (tmp_path / "results.json").write_text('{"benchmark": "tiny"}')
    with pytest.raises(InputError, match=r"results\.json lacks some of benchmark, "):
        read_rows(tmp_path)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match="is not valid JSON"):
        read_rows(tmp_path)


@pytest.mark.parametrize("text", ["- 1", "figures: 3", "figures: [{method: x}]", "other: []"])
def test_a_file_of_figures_that_lacks_something(text, tmp_path):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match="expected figures: a list of mappings with method, backbone"):
        read_published(tmp_path / "mine.yaml")


def test_markdown_keeps_its_columns(tmp_path):
    save(tmp_path / "a", recipe="x|y")
    save(tmp_path / "b")
    lines = as_markdown(read_rows(tmp_path)).splitlines()
    assert "| x\\|y |" in lines[2]
