"""What becomes an option, and what makes two runs different."""

from pathlib import Path

import numpy as np
import pytest

from textregion.cli.arguments import parse_arguments
from textregion.cli.jobs import (
    ImageJob,
    check_masks,
    file_stamp,
    job_fingerprint,
    mask_file,
    run_settings,
    segmenter_options,
)
from textregion.errors import InputError
from textregion.segmenter import TextRegionSegmenter


def test_flags_become_options_only_when_given():
    assert set(segmenter_options(parse_arguments([]))) == {"device"}
    options = segmenter_options(parse_arguments(["--remove_global_patch", "False", "--scale", "(300, 200)"]))
    assert options["global_patch_threshold"] is None
    assert options["scale"] == (300, 200)
    assert segmenter_options(parse_arguments(["--global_patch_threshold", "0.2"]))["global_patch_threshold"] == 0.2
    assert segmenter_options(parse_arguments(["--masks", "slic"]))["mask_generator"] == "slic"
    assert segmenter_options(parse_arguments(["--masks", "folder"]))["mask_generator"] is None


def test_reference_flags_select_a_preset():
    args = parse_arguments(["--clip_pretrained", "openai", "--clip_architecture", "ViT-L/14@336px"])
    assert args.preset == "clip-vit-l14-336"


def settings(*flags: str) -> dict:
    args = parse_arguments(["--preset", "tiny", "--device", "cpu", *flags])
    segmenter = TextRegionSegmenter.from_preset("tiny", **segmenter_options(args))
    return run_settings(segmenter, args, "tiny")


@pytest.mark.parametrize(
    "flags", [["--masks", "slic"], ["--boxes", "1,2,3,4"], ["--save_tokens"], ["--points_per_side", "3"]]
)
def test_every_setting_counts(flags):
    job = ImageJob(Path("x.png"), ("a",))
    same = job_fingerprint(settings(), job, "image")
    assert same == job_fingerprint(settings("--output", "elsewhere", "--resume"), job, "image")
    assert same != job_fingerprint(settings(*flags), job, "image")


def test_labels_image_and_masks_count(tmp_path):
    plain, path = settings(), Path("photos/x.png")
    several = {
        job_fingerprint(plain, ImageJob(path, ("a", "b")), "image"),
        job_fingerprint(plain, ImageJob(path, ("b", "a")), "image"),
        job_fingerprint(plain, ImageJob(path, ("a", "b")), "other"),
    }
    assert len(several) == 3
    job = ImageJob(path, ("a",))
    assert mask_file(tmp_path, job.image) is None
    given = settings("--masks", str(tmp_path))
    before = job_fingerprint(given, job, "image")
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert mask_file(tmp_path, job.image) == tmp_path / "x.npy"
    assert job_fingerprint(given, job, "image") != before


def test_a_stamp_tells_size_and_time_of_change(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"abc")
    assert file_stamp(str(path)) == {"path": str(path), "bytes": 3, "changed": path.stat().st_mtime_ns}
    assert file_stamp(None) is None


def test_a_file_of_masks_serves_one_image(tmp_path):
    jobs = [ImageJob(Path(name), ("a",)) for name in ("photos/x.png", "photos/x.jpg", "photos/y.png", "photos/x.png")]
    np.save(tmp_path / "x.npy", np.zeros(3))
    with pytest.raises(
        InputError, match=r"got .*x\.npy as masks of photos/x\.png and of photos/x\.jpg, .*name them x\.png\.npy and"
    ):
        check_masks(str(tmp_path), jobs)
    with pytest.raises(InputError, match="name the images differently"):
        check_masks(str(tmp_path), [jobs[0], ImageJob(Path("elsewhere/x.png"), ("a",))])
    check_masks(str(tmp_path / "x.npy"), jobs)  # one file given for all is no mistake
    check_masks("sam2", jobs)
    np.save(tmp_path / "x.jpg.npy", np.zeros(3))  # the exact name comes first
    check_masks(str(tmp_path), jobs)
