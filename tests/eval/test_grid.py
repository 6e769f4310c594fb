"""What grid files stand for, and what is refused before anything is run."""

import os
import sys

import pytest
import yaml
from warm_start import run_warm

from eval.grid import as_flags, read_grid
from eval.results import ROOT
from eval.semantic_cli import parser
from textregion.errors import InputError


def grid(tmp_path, **content):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return read_grid(path, tmp_path / "out")


def test_every_combination_is_a_cell_with_a_folder_of_its_own(tmp_path):
    axes = {"recipe": ["semantic", "demo"], "model.probability_threshold": [0.0, 0.5]}
    cells = grid(tmp_path, benchmarks=["tiny", "voc21"], common={"limit": 3, "device": "cpu"}, grid=axes)
    assert [cell.name.rpartition(",")[0] for cell in cells] == [
        f"{name},recipe={recipe},model.probability_threshold={threshold}"
        for name in ("tiny", "voc21")
        for recipe in ("semantic", "demo")
        for threshold in (0.0, 0.5)
    ]
    assert len({cell.name for cell in cells}) == 8
    assert {cell.device for cell in cells} == {"cpu"}
    assert cells[5].varied == {"recipe": "semantic", "model.probability_threshold": 0.5}
    options = parser().parse_args(cells[5].command[2:])
    assert (options.config, options.limit, options.recipe) == (ROOT / "configs/cfg_ds/cfg_voc21.py", 3, "semantic")
    assert options.work_dir == tmp_path / "out" / cells[5].name
    assert options.cfg_options == {"model.probability_threshold": 0.5}


def test_the_folder_says_what_decides_the_numbers(tmp_path):
    def name(**common):
        (cell,) = grid(tmp_path, benchmarks=["tiny"], common=common)
        return cell.name

    assert name(limit=3) == name(limit=3)
    assert len({name(limit=3), name(limit=4), name(), name(masks="slic")}) == 4


def test_the_other_tasks(tmp_path):
    common = {"preset": "tiny", "input_file_root": "a b", "image_root": "c"}
    cells = grid(tmp_path, program="referring", common=common, grid={"proposals": ["gt", "none"]})
    assert [cell.name.rpartition(",")[0] for cell in cells] == ["referring,proposals=gt", "referring,proposals=none"]
    assert "--input_file_root=a b" in cells[0].command


def test_values_of_every_kind_become_the_programs_words():
    options = {
        "scale": [192, 96],
        "random_weights": True,
        "antialias": False,
        "draw": False,
        "recipe": None,
        "limit": 2,
    }
    words = as_flags({**options, "model.scale": [3, 4], "a.b": "x"}, parser())
    flags = ["--scale", "192", "96", "--random_weights", "--antialias=False", "--limit=2"]
    assert words == [*flags, "--cfg_options", "model.scale=[3,4]", "a.b=x"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"benchmark": ["tiny"]}, r"has \['benchmark'\]; expected a grid"),
        ({"benchmarks": []}, "holds no run"),
        ({"benchmarks": ["tiny"], "grid": {"recipe": []}}, "holds no run"),
        ({"benchmarks": ["tiny"], "grid": {"recipe": "demo"}}, "holds no run"),
        ({"benchmarks": ["imagenet"]}, "unknown benchmark 'imagenet'; expected one of ade20k, "),
        ({"benchmarks": ["tiny"], "common": {"work-dir": "x"}}, "sets 'work-dir', which the sweep sets itself"),
        ({"benchmarks": ["tiny"], "common": {"masks": "slic"}, "grid": {"masks": ["sam2"]}}, "sets 'masks'"),
        ({"benchmarks": ["tiny"], "common": {"probability_threshold": 0}}, r"a dot in its name, model\.probability"),
        (
            {"benchmarks": ["tiny"], "common": {"model.classes": "my classes.txt"}},
            "becomes 'myclasses.txt' on a command",
        ),
        ({"benchmarks": ["tiny"], "common": {"scale": {"long": 3}}}, "scale: got {'long': 3}, expected a number"),
        ({"benchmarks": ["tiny"], "grid": {"recipe": ["demo", "demo"]}}, "twice; leave one of the equal values out"),
        ({"program": "detection"}, "got program 'detection', expected one of semantic, "),
        ({"program": "referring", "benchmarks": ["tiny"]}, "program referring takes no benchmarks"),
        ({"program": "reasoning", "common": {"dataset_dir": "x", "a.b": 1}}, "has no config"),
    ],
)
def test_a_grid_that_cannot_be_run_is_one_line(content, said, tmp_path):
    with pytest.raises(InputError, match=said):
        grid(tmp_path, **content)


def test_a_value_that_the_program_refuses_ends_it(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        grid(tmp_path, benchmarks=["tiny"], grid={"pool_feature": ["value", "nonsense"]})
    assert ended.value.code == 2
    assert "--pool_feature: invalid choice: 'nonsense'" in capsys.readouterr().err


def test_the_commands_are_complete(tmp_path):
    (cell,) = grid(tmp_path, benchmarks=["tiny"], common={"preset": "tiny"})
    assert cell.command[0] == sys.executable
    done = run_warm([*cell.command[1:], "--help"], tmp_path, os.environ)
    assert done.returncode == 0, done.stderr
    assert "Evaluate one segmentation benchmark" in done.stdout
