"""A batch: each image on its own, stopped and taken up again, nothing done twice and nothing lost."""

import csv
import json
import os
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from warm_start import WarmProgram

from textregion.backbones import ClipBackbone
from textregion.cli.batch import MOST_ROWS, Outcome, print_table, totals, write_summary
from textregion.cli.program import main
from textregion.segmenter import TextRegionSegmenter
from textregion.tiny.scenes import draw_scene

PROGRAM = Path(__file__).resolve().parents[3] / "TextRegionSegmenter.py"
FLAGS = ("--preset", "tiny", "--labels", "sky", "red star", "--scale", "96", "96")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Nine small drawn scenes, and masks of two regions for each."""
    folder = tmp_path_factory.mktemp("scenes")
    (folder / "masks").mkdir()
    for seed in range(9):
        Image.fromarray(draw_scene(seed).image).resize((67, 53)).save(folder / f"scene{seed}.png")
        write_masks(folder / "masks" / f"scene{seed}.npy", 20 + seed)
    return folder


def write_masks(path: Path, split: int) -> None:
    """What is left and right of a column."""
    masks = np.zeros((2, 53, 67), bool)
    masks[0, :, :split], masks[1, :, split:] = True, True
    np.save(path, masks)


def arguments(images, output, *more) -> list[str]:
    folder = images if images.is_dir() else images.parent
    masks = ["--masks", str(folder / "masks")] if (folder / "masks").is_dir() else ["--masks", "slic"]
    return [*FLAGS, *masks, "--image", str(images), "--output", str(output), *map(str, more)]


def run(capsys, images, output, *more) -> tuple[int, str, str]:
    code = main(arguments(images, output, *more))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def stamps(output: Path) -> dict[str, int]:
    """When each finished image was finished."""
    return {path.parent.name: path.stat().st_mtime_ns for path in output.glob("[!.]*/run.json")}


def files(output: Path) -> dict[str, bytes]:
    """Everything in the images' folders but run.json, which tells the time."""
    paths = [path for path in output.rglob("*") if path.is_file() and path.parent != output]
    return {str(path.relative_to(output)): path.read_bytes() for path in paths if path.name != "run.json"}


@pytest.fixture
def encoded(monkeypatch) -> list[tuple[int, ...]]:
    """The shape of every image that is encoded from now on."""
    shapes, encode = [], TextRegionSegmenter.encode_image

    def counting(self, image, masks=None):
        shapes.append(image.shape)
        return encode(self, image, masks)

    monkeypatch.setattr(TextRegionSegmenter, "encode_image", counting)
    return shapes


def test_killed_in_the_middle_and_resumed(scenes, tmp_path, capsys, encoded):
    """kill -9: what was finished stays untouched, the rest is done once, the result is that of a run left alone."""
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    process = WarmProgram([str(PROGRAM), *arguments(scenes, killed)], tmp_path, os.environ)
    while len(stamps(killed)) < 3 and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    assert process.poll() == -signal.SIGKILL
    finished = stamps(killed)
    assert 3 <= len(finished) < 9
    code, out, _ = run(capsys, scenes, killed, "--resume")
    assert code == 0
    assert f"9 images: {9 - len(finished)} done, {len(finished)} resumed" in out
    assert len(encoded) == 9 - len(finished)
    assert {name: stamps(killed)[name] for name in finished} == finished
    assert {path.name for path in killed.iterdir() if path.is_dir()} == {f"scene{n}" for n in range(9)}
    assert run(capsys, scenes, whole)[0] == 0
    assert files(killed) == files(whole)


def test_resume_does_again_what_is_not_the_same(scenes, tmp_path, capsys, encoded):
    images = tmp_path / "images"
    (images / "masks").mkdir(parents=True)
    for n in range(3):
        (images / f"{n}.png").write_bytes((scenes / f"scene{n}.png").read_bytes())
        write_masks(images / "masks" / f"{n}.npy", 30)
    output = tmp_path / "out"
    run(capsys, images, output)
    (images / "1.png").write_bytes((scenes / "scene7.png").read_bytes())
    (output / "2" / "overlay.png").unlink()
    code, out, _ = run(capsys, images, output, "--resume")
    assert (code, len(encoded)) == (0, 3 + 2)
    assert "3 images: 2 done, 1 resumed" in out
    assert f"an earlier run is kept as {output / '1.old-1'}" in out
    assert (output / "2" / "overlay.png").is_file()
    assert run(capsys, images, output, "--resume", "--global_patch_threshold", "0.1")[0] == 0
    assert len(encoded) == 5 + 3
    code, out, _ = run(capsys, images / "0.png", output, "--resume", "--global_patch_threshold", "0.1")
    assert "already finished with these settings" in out
    assert len(encoded) == 8


def test_given_masks_count_as_a_setting(tmp_path, capsys, scenes, encoded):
    for split in (20, 40, 40):
        write_masks(tmp_path / "scene0.npy", split)
        assert run(capsys, scenes / "scene0.png", tmp_path / "out", "--masks", tmp_path, "--resume")[0] == 0
    assert len(encoded) == 2


@pytest.mark.parametrize("number", [1, 3])
def test_images_of_which_none_can_be_read_are_told_before_a_model_is_loaded(tmp_path, capsys, monkeypatch, number):
    """A strip whose header alone is there: more pixels on a side than are taken."""
    monkeypatch.setattr(TextRegionSegmenter, "from_preset", None)
    strip = tmp_path / "strip.pgm"
    strip.write_bytes(b"P5 1 100000000 255 ")
    others = [tmp_path / f"absent{n}.png" for n in range(1, number)]
    code, _, err = run(capsys, strip, tmp_path / "out", *(["--image_list", *others] if others else []))
    assert code == 2
    assert f"{strip} has 1 x 100000000 pixels, more than the limit of 65535 on a side; cut it into pieces first" in err
    assert len(err.splitlines()) == (1 if number == 1 else 4)


def test_one_bad_image_does_not_stop_the_others(tmp_path, capsys, scenes, monkeypatch):
    calls, encode = [], ClipBackbone.encode_labels
    monkeypatch.setattr(
        ClipBackbone, "encode_labels", lambda self, labels, *how: calls.append(labels) or encode(self, labels, *how)
    )
    (tmp_path / "bad.png").write_bytes(b"not an image")
    output = tmp_path / "out"
    more = ("--image_list", scenes / "scene0.png", tmp_path / "absent.png", scenes / "scene1.png")
    code, out, err = run(capsys, tmp_path / "bad.png", output, "--masks", scenes / "masks", *more)
    assert code == 1, "done, but for two images"
    assert "skipped: " in err
    assert "bad.png is not an image" in err
    assert err.endswith("error: 2 of 4 images could not be labelled; see the lines above\n")
    assert "4 images: 2 done, 2 failed" in out
    assert calls == [["sky", "red star"]]  # the text is encoded once
    rows = list(csv.DictReader((output / "summary.csv").read_text(encoding="utf-8").splitlines()))
    assert [(Path(row["image"]).name, row["status"]) for row in rows] == [
        ("bad.png", "failed"),
        ("scene0.png", "done"),
        ("absent.png", "failed"),
        ("scene1.png", "done"),
    ]
    assert "no image file at" in rows[2]["message"]
    folder = json.loads((output / "scene0" / "regions.json").read_text())
    assert int(rows[1]["regions"]) == len(folder["regions"])
    assert (rows[1]["width"], rows[1]["height"]) == ("67", "53")
    assert "absent.png" in (output / "summary.md").read_text()


def test_stopped_by_the_keyboard(tmp_path, capsys, scenes, monkeypatch):
    seen, encode = [], TextRegionSegmenter.encode_image

    def interrupted(self, image, masks=None):
        seen.append(image)
        if len(seen) == 3:
            raise KeyboardInterrupt
        return encode(self, image, masks)

    monkeypatch.setattr(TextRegionSegmenter, "encode_image", interrupted)
    code, out, err = run(capsys, scenes, tmp_path)
    assert code == 130
    assert "2 of 9 images dealt with; to go on: the same command with --resume\n" in err
    assert "2 images: 2 done" in out
    assert set(stamps(tmp_path)) == {"scene0", "scene1"}
    assert {path.name for path in tmp_path.iterdir()} == {"scene0", "scene1"}


@pytest.fixture
def small_disk():
    """No file may grow above 20,000 bytes: the kernel refuses to write more."""
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_ends_the_batch_in_one_line(tmp_path, capsys, scenes, small_disk):
    assert run(capsys, scenes / "scene0.png", tmp_path)[0] == 0
    before = files(tmp_path), stamps(tmp_path)
    small_disk()
    code, _, err = run(capsys, scenes / "scene0.png", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: cannot write to {tmp_path / 'scene0'} (File too large); free space")
    code, _, err = run(capsys, scenes, tmp_path)
    assert code == 2
    assert "0 of 9 images dealt with; to go on: the same command with --resume\nerror: cannot write to" in err
    assert (files(tmp_path), stamps(tmp_path)) == before
    assert os.listdir(tmp_path) == ["scene0"]


# ---------------------------------------------------------------------- the table of a batch

DONE = Outcome("a|b.png", "out/a|b", "done", 20, 10, 3, "дом 60%, sky 40%", 1.234)
FAILED = Outcome("bad.png", "out/bad", "failed", message='bad.png is, "truly", no image')


def test_rows_tell_what_run_json_holds():
    run = {
        "width": 5,
        "height": 7,
        "regions": 2,
        "note": "",
        "shares": [["a", 0.5], ["b", 0.3], ["c", 0.1], ["d", 0.1]],
    }
    row = Outcome.of_run("x.png", "out/x", "resumed", {**run, "kept": "out/x.old-1"}, 0.1)
    assert (row.width, row.height, row.regions, row.labels) == (5, 7, 2, "a 50%, b 30%, c 10%")
    assert row.line() == (
        "x.png: 2 regions -> out/x (resumed; a 50%, b 30%, c 10%; 0.10 s; an earlier run is kept as out/x.old-1)"
    )
    none = Outcome.of_run(
        "x.png", "out/x", "done", {**run, "regions": 0, "shares": [], "note": "no region found: …"}, 0.1
    )
    assert none.line() == "x.png: 0 regions -> out/x (done; no region found; 0.10 s; no region found: …)"
    assert none.cells()[3] == "no region found"
    assert FAILED.line() == 'skipped: bad.png is, "truly", no image'


def test_totals_and_files(tmp_path):
    assert totals([DONE, FAILED, DONE]) == "3 images: 2 done, 1 failed; 2.5 s"
    write_summary(tmp_path, [DONE, FAILED])
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text(encoding="utf-8").splitlines()))
    assert (rows[0]["image"], rows[0]["labels"], rows[0]["seconds"]) == ("a|b.png", "дом 60%, sky 40%", "1.23")
    assert rows[1]["message"] == FAILED.message
    lines = (tmp_path / "summary.md").read_text(encoding="utf-8").splitlines()
    assert lines[2] == "| a\\|b.png | 20 x 10 | 3 | дом 60%, sky 40% | 1.23 s | done |  |"
    assert lines[-1] == "2 images: 1 done, 1 failed; 1.2 s"


def test_screen_table_is_aligned_and_bounded(capsys):
    print_table([DONE, FAILED])
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].index("status") == lines[2].index("done") == lines[3].index("failed")
    print_table([DONE] * MOST_ROWS + [FAILED, Outcome("long/" * 40 + "name.png", "x", "done", 1, 1)])
    out = capsys.readouterr().out
    assert "bad.png" in out
    assert "a|b.png" not in out
    assert f"({MOST_ROWS + 1} more rows)" in out
    assert max(map(len, out.splitlines())) < 200


def test_a_summary_of_other_images_is_kept(tmp_path, capsys):
    write_summary(tmp_path, [DONE, FAILED])
    first = (tmp_path / "summary.csv").read_bytes()
    write_summary(tmp_path, [FAILED, DONE, Outcome("c.png", "out/c", "done")])
    assert not list(tmp_path.glob("*.old-*"))
    second = (tmp_path / "summary.csv").read_bytes()
    assert second != first
    write_summary(tmp_path, [DONE])
    assert (tmp_path / "summary.csv.old-1").read_bytes() == second
    assert "an earlier summary of other images is kept as" in capsys.readouterr().out
    (tmp_path / "summary.csv").write_bytes(b"\xff mine")
    write_summary(tmp_path, [DONE])
    assert (tmp_path / "summary.csv.old-2").read_bytes() == b"\xff mine"


def test_every_image_of_a_batch_has_its_own_masks_of_one_coco_file(tmp_path, capsys):
    rows, things = [], []
    for number, folder in ((1, "cam1"), (2, "cam2"), (3, "cam3")):
        (tmp_path / folder).mkdir()
        Image.fromarray(draw_scene(number).image).resize((67, 53)).save(tmp_path / folder / "0001.png")
        square = [[10 * number, 5, 10 * number + 20, 5, 10 * number + 20, 30, 10 * number, 30]]
        rows.append({"id": number, "file_name": f"cam{number}/0001.png", "width": 67, "height": 53})
        things.append({"id": 70 + number, "image_id": float(number), "segmentation": square})
    things.append({"id": 79, "image_id": 2, "segmentation": [[5, 5, 6, 6]]})
    (tmp_path / "coco.json").write_text(json.dumps({"images": rows[:2], "annotations": things}))
    images = [str(tmp_path / f"cam{n}" / "0001.png") for n in (1, 2, 3)]
    more = ("--image_list", *images, "--masks", str(tmp_path / "coco.json"), "--output", str(tmp_path / "out"))
    code = main([*FLAGS, *more])
    captured = capsys.readouterr()
    assert code == 1, "the third image is not in the file"
    assert "coco.json lists no image" in captured.err
    assert "1 of 4 annotations name no image that the file lists" in captured.err
    assert "passed over 1 broken masks or polygons: annotation 79 (" in captured.err
    boxes = {}
    for path in (tmp_path / "out").glob("*/run.json"):
        regions = json.loads((path.parent / "regions.json").read_text())["regions"]
        boxes[json.loads(path.read_text())["image"]["path"]] = [region["box"] for region in regions]
    assert boxes == {images[0]: [[10, 5, 30, 30]], images[1]: [[20, 5, 40, 30]]}
