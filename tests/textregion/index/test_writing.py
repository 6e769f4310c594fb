"""What is in a table after runs that were stopped, killed, repeated, or met images that changed."""

import os
import time
from pathlib import Path

import numpy as np
import pytest
from index_worlds import QUICK, contents, write_scenes
from PIL import Image
from warm_start import WarmProgram

from textregion.engines import Engine
from textregion.errors import InputError
from textregion.index import RegionIndex
from textregion.index.store import Tables
from textregion.segmenter import TextRegionSegmenter
from textregion.tiny.scenes import draw_scene

ROOT = Path(__file__).resolve().parents[3]
CODE = """
import sys
from textregion.index import RegionIndex
index = RegionIndex.open(sys.argv[1], device="cpu")
print("ready", flush=True)
index.add(sys.argv[2], flush_rows=1)
"""


def journal(index: RegionIndex) -> dict[str, dict]:
    return {Path(row["image"]).name: row for row in index.tables.journal().to_pylist()}


def test_a_table_has_every_region_once_with_its_journal(quick_table):
    index = RegionIndex.open(quick_table / "table.lance")
    rows, images = index.tables.regions.to_arrow().to_pylist(), journal(index)
    assert sorted(images) == [f"{n}.png" for n in range(6)]
    for name, image in images.items():
        own = [row for row in rows if Path(row["image"]).name == name]
        assert sorted(row["region"] for row in own) == list(range(image["regions"]))
        assert (image["width"], image["height"], image["status"]) == (64, 64, "done")
    tokens = np.array([row["token"] for row in rows], np.float32)
    assert np.allclose(np.linalg.norm(tokens, axis=1), 1, atol=2e-3)


def test_the_table_holds_what_the_segmenter_says(quick_table):
    index = RegionIndex.open(quick_table / "table.lance", device="cpu")
    image = str(quick_table / "photos" / "3.png")
    tokens = index.segmenter().encode_image(image)
    rows = [row for row in index.tables.regions.to_arrow().to_pylist() if row["image"] == image]
    rows.sort(key=lambda row: row["region"])
    assert np.array_equal(
        np.array([row["token"] for row in rows], np.float16), tokens.tokens.numpy().astype(np.float16)
    )
    binary = tokens.masks.binary(tuple(tokens.masks.soft.shape[1:])).float().mean((1, 2))
    assert np.allclose([row["area"] for row in rows], binary, atol=1e-6)
    assert np.allclose([row["box"] for row in rows], tokens.masks.boxes)


def test_a_rerun_does_what_is_missing_or_changed_and_prune_drops_what_is_gone(tmp_path):
    photos = write_scenes(tmp_path / "photos", range(4))
    index = RegionIndex.create(tmp_path / "t.lance", "tiny", **QUICK)
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no image")
    (photos / "notes.txt").write_text("no image")
    first = index.add(photos)
    assert (first.encoded, first.unchanged, first.passed_over) == (4, 0, 1)
    assert [Path(image).name for image, _ in first.unreadable] == ["broken.jpg"]
    assert "broken.jpg is not an image that can be read" in journal(index)["broken.jpg"]["reason"]
    before = contents(index)

    Image.fromarray(draw_scene(9, 64).image).save(photos / "1.png")  # another content
    os.utime(photos / "2.png", ns=(1, 1))  # another time alone
    (photos / "3.png").unlink()
    second = index.add(photos)
    assert (second.encoded, second.unchanged, second.pruned) == (1, 2, 0)
    assert sorted(journal(index)) == ["0.png", "1.png", "2.png", "3.png", "broken.jpg"]
    third = index.add(photos, prune=True)
    assert (third.encoded, third.unchanged, third.pruned) == (0, 3, 1)
    assert sorted(journal(index)) == ["0.png", "1.png", "2.png", "broken.jpg"]
    after = contents(index)
    kept = [row for row in before if Path(row[0]).name in ("0.png", "2.png")]
    assert [row for row in after if Path(row[0]).name in ("0.png", "2.png")] == kept
    assert len({row[:2] for row in after}) == len(after)

    fresh = RegionIndex.create(tmp_path / "fresh.lance", "tiny", **QUICK)
    fresh.add(photos)
    assert contents(fresh) == after


def test_memory_that_runs_out_is_no_fault_of_the_image(tmp_path, monkeypatch):
    photos = write_scenes(tmp_path / "photos", range(3))
    index = RegionIndex.create(tmp_path / "t.lance", "tiny", **QUICK)
    encode, count = TextRegionSegmenter.encode_images, []

    def short(segmenter, images, masks=None):
        count.append(len(images))
        if len(count) > 1:
            raise InputError("the image needs more memory than there is: out of memory")
        return encode(segmenter, images, masks)

    with monkeypatch.context() as patch:
        patch.setattr(TextRegionSegmenter, "encode_images", short)
        with pytest.raises(InputError, match="out of memory"):
            index.add(photos)
    assert list(journal(index)) == ["0.png"]
    assert index.add(photos).encoded == 2
    assert {row["status"] for row in journal(index).values()} == {"done"}


def test_prune_leaves_other_folders_alone(tmp_path):
    one, other = write_scenes(tmp_path / "one", [0]), write_scenes(tmp_path / "other", [1])
    index = RegionIndex.create(tmp_path / "t.lance", "tiny", **QUICK)
    index.add([one, other])
    (other / "1.png").unlink()
    assert index.add(one, prune=True).pruned == 0
    assert index.add(other / "1.png", prune=True).pruned == 1


@pytest.mark.slow
def test_killed_three_times_and_run_again(tmp_path):
    """kill -9 at different moments: no row lost, none twice, nothing that was complete done again."""
    photos = write_scenes(tmp_path / "photos", range(12))
    index = RegionIndex.create(tmp_path / "t.lance", "tiny", **QUICK)
    done: dict[str, dict] = {}
    for delay in (0.05, 0.3, 0.6):
        process = WarmProgram(["-c", CODE, str(tmp_path / "t.lance"), str(photos)], ROOT, os.environ)
        while not process.output():
            assert process.poll() is None, process.wait().stderr
            time.sleep(0.01)
        time.sleep(delay)
        process.kill()
        index.tables.refresh()
        seen = {name: row for name, row in journal(index).items() if row["status"] == "done"}
        assert done.items() <= seen.items()
        assert len(index) == sum(row["regions"] for row in seen.values())
        done = seen
    last = index.add(photos)
    assert (last.encoded, last.unchanged) == (12 - len(done), len(done))
    whole = RegionIndex.create(tmp_path / "whole.lance", "tiny", **QUICK)
    whole.add(photos)
    assert contents(index) == contents(whole)


@pytest.mark.parametrize("where", ["regions", "images", "state"])
def test_a_run_that_dies_between_two_writes_leaves_nothing_that_is_seen(
    quick, quick_table, tmp_path, monkeypatch, where
):
    more = write_scenes(tmp_path / "more", [20])
    index = RegionIndex.open(quick, device="cpu")
    before = contents(index)
    adders = {"images": "textregion.index.store.journal_rows", "regions": "textregion.index.store.region_rows"}
    place = adders.get(where, "textregion.index.store.Writer.commit")

    def dies(*_):
        raise MemoryError("as good as kill -9")

    monkeypatch.setattr(place, dies)
    with pytest.raises(MemoryError):
        index.add(more)
    monkeypatch.undo()
    again = RegionIndex.open(quick, device="cpu")
    assert contents(again) == before
    assert again.add(more).encoded == 1
    assert len({row[:2] for row in contents(again)}) == len(contents(again)) > len(before)


def test_a_second_writer_is_refused_and_a_killed_one_leaves_no_lock(quick):
    one, other = Tables.open(quick), Tables.open(quick)
    with one.writing(), pytest.raises(InputError, match="another process is writing to"), other.writing():
        pass
    with other.writing():
        pass


def test_where_no_lock_can_be_had_the_writer_that_was_taken_over_stops(quick, monkeypatch):
    monkeypatch.setattr("textregion.index.store.fcntl", None)
    one, other = Tables.open(quick), Tables.open(quick)
    with one.writing() as first, other.writing() as second:
        with pytest.raises(InputError, match="another process has begun to write"):
            first.commit()
        second.commit(["/somewhere"])
    assert Tables.open(quick).state.roots[-1] == "/somewhere"


def test_ctrl_c_keeps_what_was_done(tmp_path, monkeypatch):
    photos = write_scenes(tmp_path / "photos", range(4))
    index = RegionIndex.create(tmp_path / "t.lance", "tiny", **QUICK)
    encode, calls = index.segmenter().encode_images, []

    def interrupted(images):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return encode(images)

    monkeypatch.setattr(index.segmenter(), "encode_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index.add(photos)
    assert sorted(journal(index)) == ["0.png", "1.png"]
    monkeypatch.undo()
    assert index.add(photos, engine=Engine(batch=2)).encoded == 2


def test_many_small_flushes_are_compacted(tmp_path):
    photos = write_scenes(tmp_path / "photos", range(10), 64)
    index = RegionIndex.create(tmp_path / "t.lance", "tiny", **QUICK)
    index.add(photos, flush_rows=1)
    assert len(index.tables.regions.to_lance().get_fragments()) == 1
    assert len(journal(index)) == 10
