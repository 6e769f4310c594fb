"""The demo program, as a user runs it, on the embedded models and on photographs."""

import re

import numpy as np
import pytest
import yaml
from PIL import Image
from skimage import data

from TextRegionSegmenter import main
from utils.demo.arguments import parse_arguments
from utils.demo.program import (
    box_of,
    find_query,
    gather_jobs,
    mean_iou,
    output_names,
    read_query_cfg,
    segmenter_options,
)
from utils.errors import InputError


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
    for name in ("picture.png", "labels.png", "scene.png", "global_patches.png"):
        with Image.open(tmp_path / "scene_10" / name) as image:
            assert image.size[0] >= 256


def test_photographs_with_the_tiny_preset(tmp_path, capsys, photos):
    code, out, err = run(
        capsys,
        "--preset",
        "tiny",
        "--image_list",
        *sorted(photos.glob("*.png")),
        "--labels",
        "wood",
        "quokka",
        "--output",
        tmp_path,
    )
    assert code == 0
    assert out.count("regions ->") == 3
    assert "never saw the words: quokka" in err
    labels = np.asarray(Image.open(tmp_path / "coffee" / "labels.png"))
    assert labels.shape == (151, 181)
    assert set(np.unique(labels)) <= {0, 1}


def test_real_architectures_on_a_photograph(tmp_path, capsys, photos):
    code, _, err = run(
        capsys,
        *("--preset", "clip-vit-b16", "--model_cfg", "tiny", "--random_weights"),
        *("--image", photos / "astronaut.png", "--labels", "person", "rocket"),
        *("--scale", "336", "336", "--points_per_side", "3", "--device", "cpu", "--output", tmp_path),
    )
    assert (code, err) == (0, "")
    assert np.asarray(Image.open(tmp_path / "astronaut" / "labels.png")).shape == (151, 181)


@pytest.mark.parametrize("source", ["slic", "label-map", "boxes"])
def test_other_mask_sources(tmp_path, capsys, photos, source):
    label_map = np.zeros((151, 181), np.uint8)
    label_map[:, 90:] = 1
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


def test_one_bad_image_does_not_stop_the_others(tmp_path, capsys, photos):
    (tmp_path / "bad.png").write_bytes(b"not an image")
    code, _, err = run(
        capsys,
        *("--preset", "tiny", "--masks", "slic", "--labels", "wood", "--output", tmp_path / "out"),
        *("--image_list", tmp_path / "bad.png", photos / "coffee.png"),
    )
    assert code == 2
    assert (tmp_path / "out" / "coffee" / "picture.png").is_file()
    assert "bad.png is not an image" in err
    assert err.endswith("error: 1 of 2 images could not be labelled; see the lines above\n")


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "1 2 3 4"])
def test_a_bad_box_is_named(text):
    with pytest.raises(InputError, match="expected x1,y1,x2,y2"):
        box_of(text)


def test_pixels_outside_all_regions_are_said(tmp_path, capsys, photos):
    corner = np.zeros((1, 151, 181), bool)
    corner[0, :50, :60] = True
    np.save(tmp_path / "coffee.npy", corner)
    given = ("--image", photos / "coffee.png", "--masks", tmp_path / "coffee.npy", "--labels", "wood", "stone")
    _, out, _ = run(capsys, "--preset", "tiny", *given, "--output", tmp_path / "out")
    assert "(89.0% of the pixels lie in no region: labelled from dense features)" in out


def test_yaml_of_images_and_labels(tmp_path, capsys, photos):
    queries = photos / "queries.yaml"
    queries.write_text(yaml.safe_dump({"astronaut.png": ["red shape", "sky"], "coffee.png": "wood, stone"}))
    code, out, _ = run(capsys, "--preset", "tiny", "--image_query_cfg", queries, "--output", tmp_path)
    assert code == 0
    assert out.count("regions ->") == 2
    assert "red shape" in out
    assert "stone" in out


def test_query_file_by_name_and_its_errors(tmp_path):
    path = tmp_path / "q.yaml"
    path.write_text("a/x.png: [dog]\nb/y.png: [cat, sofa]\n")
    queries = read_query_cfg(path)
    assert find_query(queries, tmp_path / "elsewhere" / "y.png") == ["cat", "sofa"]
    with pytest.raises(InputError, match="0 entries"):
        find_query(queries, tmp_path / "z.png")
    for text, message in (
        ("[1, 2", "not valid YAML"),
        ("just words", "expected a mapping"),
        ("a.png: 3", "expected a l"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_query_cfg(path)
    with pytest.raises(InputError, match="no file"):
        read_query_cfg(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--image", "absent.png", "--labels", "a", "--preset", "tiny"], "no image file at absent.png"),
        (["--image", "absent.png"], "no labels"),
        (["--labels", "a"], "no image"),
        (["--preset", "nope"], "nope"),
        (["--preset", "tiny", "--image", "README.md", "--labels", "a"], "not an image"),
        (["--preset", "tiny", "--points_per_side", "0"], "points_per_side"),
        (["--preset", "tiny", "--crop_size", "97"], "multiple of the patch size"),
        (["--preset", "tiny", "--global_patch_threshold", "7"], "global_patch_threshold"),
        (["--preset", "tiny", "--device", "toaster"], "toaster"),
        (["--preset", "tiny", "--dtype", "int4"], "int4"),
        (["--preset", "tiny", "--sam2_checkpoint", "absent.pt"], "absent.pt"),
        (["--image_query_cfg", "absent.yaml"], "absent.yaml"),
        (["--boxes", "1,2,3,4"], "no image"),
        (["--image", "a.png", "--labels", "a", "--boxes", "1,2,3,4", "--masks", "slic"], "exclude each other"),
        (["--preset", "tiny", "--output", "README.md/x"], "cannot write"),
        (["--preset", "tiny", "--remove_global_patch", "False", "--visualize_global_patch"], "removal is off"),
    ],
)
def test_bad_input_is_one_line_and_code_2(capsys, arguments, message):
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_flags_become_options_only_when_given():
    assert set(segmenter_options(parse_arguments([]))) == {"device", "dtype"}
    options = segmenter_options(parse_arguments(["--remove_global_patch", "False", "--scale", "(300, 200)"]))
    assert options["global_patch_threshold"] is None
    assert options["scale"] == (300, 200)
    assert segmenter_options(parse_arguments(["--global_patch_threshold", "0.2"]))["global_patch_threshold"] == 0.2


def test_reference_flags_select_a_preset():
    args = parse_arguments(["--clip_pretrained", "openai", "--clip_architecture", "ViT-L/14@336px"])
    assert args.preset == "clip-vit-l14-336"


def test_jobs_from_image_list_and_labels():
    jobs = gather_jobs(parse_arguments(["--image", "a.png", "--image_list", "b.png", "--labels", "x", "y"]))
    assert [(job.image.name, job.labels) for job in jobs] == [("a.png", ("x", "y")), ("b.png", ("x", "y"))]


def test_output_names_are_unique():
    from pathlib import Path

    assert output_names([Path("a/x.png"), Path("b/x.jpg"), Path("y.png")]) == ["x", "x_2", "y"]


def test_mean_iou_by_hand():
    truth, prediction = np.array([[0, 0, 1, 1]]), np.array([[0, 1, 1, 2]])
    assert mean_iou(prediction, truth, 3) == pytest.approx((1 / 2 + 1 / 3) / 2)
