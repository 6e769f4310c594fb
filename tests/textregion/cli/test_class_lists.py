"""Lists of labels by name."""

import json

import pytest
from PIL import Image

from textregion.backbones import ClipBackbone
from textregion.cli.arguments import parse_arguments
from textregion.cli.class_lists import LISTS, expand
from textregion.cli.jobs import gather_jobs
from textregion.cli.program import main
from textregion.errors import InputError
from textregion.tiny.scenes import draw_scene


def test_names_mixed_with_own_words(tmp_path, monkeypatch):
    (tmp_path / "my list.txt").write_text("# comment\nred, round star\n\nsofa; couch\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    labels = expand(["lamp", "@voc20", "@my list.txt"])
    assert (labels[:2], labels[21:]) == (["lamp", "aeroplane"], ["red, round star", "sofa; couch"])
    assert len(labels) == 1 + 20 + 2


def test_every_list_has_its_classes():
    sizes = {name: len(expand([f"@{name}"])) for name in LISTS}
    expected = {"ade20k": 150, "coco": 80, "coco_stuff": 171, "cityscapes": 19, "context59": 59, "context60": 60}
    assert sizes == {**expected, "tiny": 17, "voc20": 20, "voc21": 21}
    assert "traffic light" in expand(["@coco_stuff"])
    assert expand(["@coco"])[0] == "person"
    assert expand(["@voc21"])[0].startswith("sky; wall")


def test_on_the_command_line_names_are_merged(tmp_path, capsys):
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (job,) = gather_jobs(parse_arguments(["--image", str(tmp_path / "a.png"), "--labels", "@coco, lamp", "dog"]))
    assert len(job.labels) == 81
    assert capsys.readouterr().err == "note: labels named more than once, taken once: dog\n"


def test_unknown_lists_are_refused():
    with pytest.raises(InputError, match=r"got @lvis, which is neither a built-in list \(@ade20k, @coco, .*\) nor a"):
        expand(["@lvis"])


def test_embeddings_of_a_list_are_made_once_and_top_labels_told(tmp_path, monkeypatch, capsys):
    asked, encode = [], ClipBackbone.encode_labels

    def counting(self, labels, *more):
        asked.extend(labels)
        return encode(self, labels, *more)

    monkeypatch.setattr(ClipBackbone, "encode_labels", counting)
    Image.fromarray(draw_scene(2).image).resize((67, 53)).save(tmp_path / "a.png")
    words = ["--preset", "tiny", "--masks", "slic", "--scale", "96", "96", "--image", str(tmp_path / "a.png")]
    for labels in ("@tiny", "@tiny, star"):
        assert main([*words, "--labels", labels, "--top", "7", "--output", str(tmp_path / labels[:6])]) == 0
    assert len(asked) == 17 + 1
    rows = json.loads((tmp_path / "@tiny" / "a" / "regions.json").read_text(encoding="utf-8"))["regions"]
    assert {len(row["labels"]) for row in rows} == {7}
    for row in rows:
        cosines = [label["cosine"] for label in row["labels"]]
        assert cosines == sorted(cosines, reverse=True)
