"""The token cache: same tokens as without it, made once, completed after anything that can go wrong."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open

from textregion.errors import InputError
from textregion.images import load_image
from utils.regionspot.data import BoxDataset, TokenCache


@pytest.fixture
def cache(tmp_path, few, small_model):
    cache = TokenCache(tmp_path, few, small_model)
    cache.fill(few.images[:3], quiet=True)
    return cache


def test_tokens_and_maps_are_those_of_the_models(tmp_path, few, small_model):
    cache = TokenCache(tmp_path, few, small_model, keep_maps=True)
    assert cache.fill(few.images[:2], quiet=True) == {"made": 2}
    image = few.images[1]
    pixels = load_image(few.path(image))
    tokens, clip_map = small_model.box_tokens.encode(pixels, image.boxes)[0], small_model.clip_map(pixels)
    kept = cache.read(image)
    assert torch.equal(kept.tokens, tokens)
    assert torch.equal(kept.clip_map, clip_map.half())
    assert kept.labels.tolist() == image.labels.tolist()
    with safe_open(cache.path(image), "pt") as file:
        assert file.get_tensor("boxes").tolist() == image.boxes.tolist()
        assert file.get_tensor("category_ids").tolist() == image.category_ids.tolist()


def test_what_is_there_is_kept_and_the_rest_is_made(cache, few):
    before = cache.path(few.images[0]).stat().st_mtime_ns
    assert cache.fill(few.images[:5], quiet=True) == {"kept": 3, "made": 2}
    assert cache.path(few.images[0]).stat().st_mtime_ns == before
    assert cache.usable() == list(few.images[:5])
    assert cache.read(few.images[0]).clip_map is None


def test_damaged_and_foreign_files_are_made_again(cache, few):
    first, second, third = (cache.path(image) for image in few.images[:3])
    expected = cache.read(few.images[0]).tokens.clone()  # not the file itself, which is about to change
    first.write_bytes(first.read_bytes()[:-40])
    second.write_bytes(third.read_bytes())
    assert cache.fill(few.images[:3], quiet=True) == {"kept": 1, "made": 2}
    assert torch.equal(cache.read(few.images[0]).tokens, expected)


def test_another_sam_other_boxes_and_missing_maps_are_noticed(cache, few, small_model, monkeypatch):
    images = few.images[:3]
    moved = [replace(images[0], boxes=images[0].boxes * np.float32(0.9)), *images[1:]]
    assert cache.fill(moved, quiet=True) == {"kept": 2, "made": 1}
    with_maps = TokenCache(cache.folder.parent, few, small_model, keep_maps=True)
    assert with_maps.fill(images, quiet=True) == {"made": 3}
    assert cache.fill(images, quiet=True) == {"kept": 3}
    monkeypatch.setattr(small_model.box_tokens, "name", "sam2:another")
    assert cache.fill(images, quiet=True) == {"made": 3}


def test_a_touched_image_is_kept_and_a_changed_one_made_again(tmp_path, few, small_model):
    folder = tmp_path / "images"
    folder.mkdir()
    for image in few.images[:2]:
        (folder / image.file).write_bytes(few.path(image).read_bytes())
    own = BoxDataset("own", folder, few.names, few.images[:2], few.skipped)
    cache = TokenCache(tmp_path, own, small_model)
    cache.fill(own.images, quiet=True)
    touched, changed = (folder / image.file for image in own.images)
    touched.touch()
    changed.write_bytes(few.path(few.images[2]).read_bytes())
    assert cache.fill(own.images, quiet=True) == {"kept": 1, "made": 1}


def test_unusable_images_are_left_out_and_told(tmp_path, few, small_model, caplog):
    folder = tmp_path / "images"
    folder.mkdir()
    (folder / few.images[0].file).write_bytes(few.path(few.images[0]).read_bytes())
    (folder / few.images[1].file).write_bytes(b"no image")
    own = BoxDataset("own", folder, few.names, few.images[:3], few.skipped)
    beyond = replace(few.images[0], id=0, boxes=few.images[0].boxes + np.float32(60))
    cache = TokenCache(tmp_path, own, small_model)
    assert cache.fill([*own.images, beyond], quiet=True) == {"made": 1, "unusable": 3}
    assert [len(record.getMessage().splitlines()) for record in caplog.records] == [1, 1, 1]
    assert "lies outside the image" in caplog.text
    assert cache.usable() == [few.images[0]]


def test_an_empty_cache_and_one_that_cannot_be_written_are_refused(tmp_path, few, small_model):
    with pytest.raises(InputError, match="none of its 7 images could be used"):
        TokenCache(tmp_path, few, small_model).usable()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the token cache"):
        TokenCache(tmp_path / "file", few, small_model).fill(few.images[:1], quiet=True)
