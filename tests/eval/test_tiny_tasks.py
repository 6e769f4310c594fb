"""The drawn data sets have the layouts of the real ones."""

import json

import numpy as np

from eval.prepare.tiny_tasks import FIRST_SEED, OBJECTS, main, tight_box
from eval.reasoning import paint, read_answer, read_question
from eval.referring import read_splits
from textregion.tiny.scenes import draw_scene


def test_tight_box():
    mask = np.zeros((7, 11), bool)
    mask[2:5, 3:4] = True
    assert tight_box(mask) == [3, 2, 1, 3]


def test_one_command_writes_both(tmp_path, capsys):
    assert main(["--output", str(tmp_path), "--scenes", "2"]) == 0
    assert "2 x 2 scenes for each task written to" in capsys.readouterr().out
    expressions, unusable = read_splits(tmp_path / "referring", ["refcoco_val", "refcocog_val"])
    assert unusable == []
    assert sorted(expressions) == sorted(path.name for path in (tmp_path / "referring" / "images").iterdir())
    scene = draw_scene(FIRST_SEED, 256, OBJECTS, distinct_colours=True)
    first = expressions[f"COCO_train2014_{FIRST_SEED:012d}.jpg"]
    names = [region.name for region in scene.regions if region.kind == "object"]
    assert [e.sentences[0] for e in first] == [f"The {name}" for name in names]
    assert len(first[0].candidates) == 2 * OBJECTS
    contents = [
        json.loads((tmp_path / "referring" / f"{name}_dets_dict.json").read_text()) for name in ("refcoco", "refcocog")
    ]
    assert [type(content) for content in contents] == [dict, list], "one of each format"


def test_polygons_are_the_thing_that_is_asked_for(tmp_path):
    main(["--output", str(tmp_path), "--scenes", "2"])
    paths = sorted((tmp_path / "reasoning" / "val").glob("*.json"))
    assert len(paths) == 2
    for number, path in enumerate(paths):
        question = read_question(path)
        assert question.kind == ("short", "long")[number % 2]
        scene = draw_scene(int(path.stem), 256, OBJECTS, distinct_colours=True)
        name = read_answer(tmp_path / "answers", "val", path.stem).lower()
        (mask,) = [m for r, m in zip(scene.regions, scene.masks, strict=True) if r.name == name]
        ground_truth = paint(question.shapes, (256, 256))
        counted = ground_truth != 255
        assert ((ground_truth == 1) & mask).sum() / ((ground_truth == 1) | (mask & counted)).sum() > 0.85
        assert (ground_truth == 255).any() == (number == 0)
