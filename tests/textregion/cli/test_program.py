"""The demo program, as a user runs it, on the embedded models and on photographs."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from pycocotools.coco import COCO
from skimage import data

from textregion.cli.main import main as console
from textregion.cli.program import main
from textregion.outputs.annotations import similarity_map
from textregion.types import RegionTokens


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for name in ("astronaut", "coffee", "chelsea"):
        Image.fromarray(getattr(data, name)()).resize((181, 151)).save(folder / f"{name}.png")
    return folder


def run(capsys, *arguments) -> tuple[int, str, str]:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_drawn_scene(tmp_path, capsys):
    code, out, err = run(capsys, "--output", tmp_path, "--visualize_global_patch", "True")
    assert (code, err) == (0, "")
    assert float(re.search(r"mean IoU against the known truth: ([\d.]+)", out)[1]) >= 0.6
    shares = [float(share) for share in re.findall(r"([\d.]+)%$", out, re.MULTILINE)]
    assert sum(shares) == pytest.approx(100, abs=0.5)
    assert re.search(r"seconds: .*masks .*encode .*pool .*text .*postprocess", out)
    assert out.count("TextRegionSegmenter.py --") == 2
    assert "not a claim about photographs" in out
    folder = tmp_path / "scene_10"
    for name in ("picture.png", "overlay.png", "labels.png", "regions.png", "scene.png", "global_patches.png"):
        with Image.open(folder / name) as image:
            assert image.size[0] >= 256
    files = json.loads((folder / "run.json").read_text())["files"]
    assert sorted(files) == sorted(p.name for p in folder.iterdir() if p.name != "run.json")
    for name in ("coco.json", "coco_regions.json"):
        assert json.loads((folder / name).read_text())["images"][0]["file_name"] == "scene.png"


@pytest.fixture(scope="module")
def coffee(tmp_path_factory, photos):
    """The folder of one photograph with everything that can be asked for."""
    output = tmp_path_factory.mktemp("everything")
    code = main(
        [
            *("--preset", "tiny", "--image", str(photos / "coffee.png"), "--labels", "wood; timber", "stone", "sky"),
            *("--output", str(output), "--similarity_maps", "--save_tokens", "--visualize_global_patch"),
        ]
    )
    assert code == 0
    return output / "coffee"


def test_label_files_say_the_same(coffee):
    labels = np.asarray(Image.open(coffee / "labels.png"))
    assert labels.shape == (151, 181)
    content = json.loads((coffee / "labels.json").read_text())
    assert [entry["name"] for entry in content["labels"]] == ["wood", "stone", "sky"]
    for entry in content["labels"]:
        assert entry["share"] == pytest.approx((labels == entry["index"]).mean(), abs=1e-5)
    with Image.open(coffee / "overlay.png") as overlay:
        assert overlay.width >= 181
        assert overlay.height > 151
    coco = COCO(str(coffee / "coco.json"))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        assert (coco.annToMask(annotation) == (labels == annotation["category_id"] - 1)).all()
    assert coco.loadImgs(1)[0]["file_name"] == "coffee.png"


def test_region_files_and_tokens_say_the_same(coffee):
    tokens = RegionTokens.load(coffee / "tokens.safetensors")
    rows = json.loads((coffee / "regions.json").read_text())["regions"]
    coco = COCO(str(coffee / "coco_regions.json"))
    binary = tokens.masks.binary().numpy()
    assert len(rows) == len(tokens) == len(coco.getAnnIds())
    for row, mask, annotation in zip(rows, binary, coco.loadAnns(coco.getAnnIds()), strict=True):
        assert row["area"] == mask.sum() == annotation["area"]
        assert (coco.annToMask(annotation) == mask).all()
        assert annotation["category"] == row["labels"][0]["name"]
        cosines = [label["cosine"] for label in row["labels"]]
        assert cosines == sorted(cosines, reverse=True)
    assert np.isnan(similarity_map(tokens, torch.zeros(len(tokens)))).sum() == (~binary.any(0)).sum()


def test_extras_are_written(coffee):
    assert sorted(p.name for p in (coffee / "similarity").iterdir()) == ["00_wood.png", "01_stone.png", "02_sky.png"]
    run_file = json.loads((coffee / "run.json").read_text())
    assert "similarity/00_wood.png" in run_file["files"]
    assert run_file["labels"] == ["wood; timber", "stone", "sky"]
    assert (run_file["width"], run_file["height"]) == (181, 151)
    assert {"masks", "encode", "text"} <= set(run_file["seconds"])
    assert run_file["versions"]["torch"] == torch.__version__
    assert run_file["settings"]["preset"] == "tiny"


def test_help_tells_every_file(coffee, capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    told = capsys.readouterr().out.partition("what is written into every image's folder:")[2]
    names = {path.name + "/" * path.is_dir() for path in coffee.iterdir()}
    names = names - {"coffee.png"} | {"<image>"}
    assert names <= {line.split()[0] for line in told.splitlines() if line.strip()}


def test_photographs_with_the_tiny_preset(tmp_path, capsys, photos):
    code, out, err = run(
        capsys,
        *("--preset", "tiny", "--image_list", *sorted(photos.glob("*.png"))),
        *("--labels", "wood", "quokka", "--output", tmp_path),
    )
    assert code == 0
    assert out.count("regions ->") == 3
    assert "never saw the words: quokka" in err
    assert set(np.unique(np.asarray(Image.open(tmp_path / "coffee" / "labels.png")))) <= {0, 1}


def test_real_architectures_on_a_photograph(tmp_path, capsys, photos):
    code, out, err = run(
        capsys,
        *("--preset", "clip-vit-b16", "--model_cfg", "tiny", "--random_weights"),
        *("--image", photos / "astronaut.png", "--labels", "person", "rocket"),
        *("--scale", "336", "336", "--points_per_side", "3", "--device", "cpu", "--output", tmp_path),
    )
    assert (code, err) == (0, "")
    assert np.asarray(Image.open(tmp_path / "astronaut" / "labels.png")).shape == (151, 181)
    assert "(random weights: labels and scores mean nothing)\n" in out
    for name in ("run.json", "labels.json", "regions.json"):
        note = json.loads((tmp_path / "astronaut" / name).read_text())["note"]
        assert "random weights: labels and scores mean nothing" in note


@pytest.mark.parametrize("source", ["slic", "label-map", "boxes"])
def test_other_mask_sources(tmp_path, capsys, photos, source):
    label_map = np.zeros((151, 181), np.uint8)
    label_map[:, 90:] = 2  # 0 and 1 would be a single mask
    Image.fromarray(label_map).save(tmp_path / "coffee.png")
    flags = {"slic": ["--masks", "slic"], "label-map": ["--masks", tmp_path], "boxes": ["--boxes", "9,9,80,90"]}
    code, out, err = run(
        capsys,
        *("--preset", "tiny", "--image", photos / "coffee.png", "--labels", "wood", "stone"),
        *("--output", tmp_path / "out", *flags[source]),
    )
    assert (code, err) == (0, "")
    regions = int(re.search(r"(\d+) regions", out)[1])
    assert regions == {"label-map": 2, "boxes": 1}.get(source, regions)
    assert regions >= 1


@pytest.mark.parametrize("box", ["1,2,3", "a,b,c,d"])
def test_a_bad_box_is_named(tmp_path, capsys, photos, box):
    flags = ("--image", photos / "coffee.png", "--labels", "a", "--boxes", box, "--output", tmp_path)
    code, _, err = run(capsys, "--preset", "tiny", *flags)
    assert (code, err.count("\n")) == (2, 1)
    assert f"got the box '{box}', expected x1,y1,x2,y2" in err


def test_pixels_outside_all_regions_are_said(tmp_path, capsys, photos):
    corner = np.zeros((1, 151, 181), bool)
    corner[0, :50, :60] = True
    np.save(tmp_path / "coffee.npy", corner)
    given = ("--image", photos / "coffee.png", "--masks", tmp_path / "coffee.npy", "--labels", "wood", "stone")
    _, out, _ = run(capsys, "--preset", "tiny", *given, "--output", tmp_path / "out")
    assert "(89.0% of the pixels lie in no region: labelled from dense features)" in out


def test_no_region_is_said_everywhere(tmp_path, capsys, photos):
    """Tokens without dense features: the label map holds the first label, and nothing else tells of it."""
    np.save(tmp_path / "none.npy", np.zeros((1, 151, 181), bool))
    given = ("--image", photos / "coffee.png", "--masks", tmp_path / "none.npy", "--labels", "wood, stone")
    flags = ("--preset", "tiny", "--dense_fallback", "False", "--output", tmp_path / "out", "--similarity_maps")
    code, out, _ = run(capsys, *given, *flags)
    assert code == 0
    assert "  no region found: the label map holds the first label everywhere, which means nothing\n" in out
    assert "%" not in out
    folder = tmp_path / "out" / "coffee"
    assert (np.asarray(Image.open(folder / "labels.png")) == 0).all()
    read = {name: json.loads((folder / name).read_text()) for name in ("run.json", "labels.json", "regions.json")}
    assert all(content["note"].startswith("no region found: ") for content in read.values())
    assert (read["run.json"]["regions"], read["run.json"]["shares"], read["labels.json"]["regions"]) == (0, [], 0)
    for name in ("coco.json", "coco_regions.json"):
        content = json.loads((folder / name).read_text())
        assert content["annotations"] == []
        assert content["info"]["note"].startswith("no region found: ")


def test_yaml_of_images_and_labels(tmp_path, capsys, photos):
    queries = Path(shutil.copytree(photos, tmp_path / "photos")) / "queries.yaml"
    queries.write_text(yaml.safe_dump({"astronaut.png": ["red shape", "sky"], "coffee.png": "wood, stone"}))
    code, out, _ = run(capsys, "--preset", "tiny", "--image_query_cfg", queries, "--output", tmp_path)
    assert code == 0
    assert out.count("regions ->") == 2
    for name, labels in (("astronaut", ["red shape", "sky"]), ("coffee", ["wood", "stone"])):
        assert json.loads((tmp_path / name / "run.json").read_text())["labels"] == labels


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "absent.png", "--labels", "a", "--preset", "tiny"], "no image file at absent.png"),
        (["--image", "absent.png"], "no labels"),
        (["--labels", "a"], "no image"),
        (["--preset", "nope"], "nope"),
        (["--preset", "tiny", "--image", "README.md", "--labels", "a"], "not an image"),
        (["--preset", "tiny", "--image", "utils", "--labels", "a"], "no image in utils"),
        (["--preset", "tiny", "--image", "utils/*.png", "--labels", "a"], "no image in utils/*.png"),
        (["--preset", "tiny", "--points_per_side", "0"], "points_per_side"),
        (["--preset", "tiny", "--crop_size", "97"], "multiple of the patch size"),
        (["--preset", "tiny", "--global_patch_threshold", "7"], "global_patch_threshold"),
        (["--preset", "tiny", "--device", "toaster"], "toaster"),
        (["--preset", "tiny", "--dtype", "int4"], "int4"),
        (["--preset", "tiny", "--sam2_checkpoint", "absent.pt"], "absent.pt"),
        (["--image_query_cfg", "absent.yaml"], "absent.yaml"),
        (["--image", "a.png", "--labels_file", "absent.txt"], "no file absent.txt"),
        (["--image", "a.png", "--labels_file", "pyproject.toml", "--labels", "a"], "exclude each other"),
        (["--boxes", "1,2,3,4"], "no image"),
        (["--image", "a.png", "--labels", "a", "--boxes", "1,2,3,4", "--masks", "slic"], "exclude each other"),
        (["--preset", "tiny", "--output", "README.md/x"], "cannot write"),
        (["--preset", "tiny", "--remove_global_patch", "False", "--visualize_global_patch"], "removal is off"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, arguments, message):
    Path("utils").mkdir()
    Path("README.md").write_text("no image, and no folder")
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_the_console_program_says_what_it_does_not_know(capsys, tmp_path):
    assert console(["preset"]) == 2
    assert capsys.readouterr().err == "error: unknown command 'preset'; textregion --help lists those there are\n"
    assert console(["boxes", "a.png", "-l", "sky"]) == 2
    assert capsys.readouterr().err.startswith("error: give --boxes x1,y1,x2,y2 … or --boxes FILE")
    assert console(["segment", str(tmp_path / "absent.png"), "-l", "sky", "--preset", "tiny"]) == 2
    assert "error: no image file at " in capsys.readouterr().err
    assert console(["--help"]) == 0
    assert "textregion segment IMAGE" in capsys.readouterr().out
    assert console(["presets"]) == 0
    assert capsys.readouterr().out.startswith("preset ")
