"""Mask sources of the package transformers: sam2-hf finds what sam2 finds, sam3 and eomt what the naive rule says."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import tiny_transformers
import torch
from omegaconf import OmegaConf
from torch.nn import functional as F
from torchvision.transforms.functional import resize
from transformers import Sam2Model

import textregion
from textregion.errors import InputError
from textregion.masks import (
    SOURCES,
    EomtMasks,
    Sam2HfMaskGenerator,
    Sam2MaskGenerator,
    Sam3MaskGenerator,
    masks_from_boxes,
)
from textregion.masks.sam2_hf import published_config
from textregion.masks.sam2_model import SIZES, config_path
from textregion.masks.sam2_names import to_transformers
from textregion.presets import build
from textregion.tiny.models import load_sam2
from TextRegionSegmenter import TextRegionSegmenter

IMAGE = np.random.default_rng(5).integers(0, 256, (131, 197, 3), dtype=np.uint8)
SMOOTH = np.linspace(0, 255, 131)[:, None, None] * np.linspace(0, 1, 197)[:, None] * np.array([1.0, 0.5, 0.2])
LOOSE = {"points_per_side": 3, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "min_size": 0}


@pytest.fixture(scope="module")
def both() -> tuple[Sam2MaskGenerator, Sam2HfMaskGenerator]:
    """The same random weights in the models of the two packages."""
    ours = tiny_models.sam2()
    theirs = Sam2Model(tiny_transformers.sam2_config())
    theirs.load_state_dict(to_transformers(ours.state_dict()), strict=True)
    return Sam2MaskGenerator(ours, **LOOSE), Sam2HfMaskGenerator(theirs, **LOOSE)


@pytest.mark.parametrize("image", [IMAGE, SMOOTH.astype(np.uint8)], ids=["noise", "smooth"])
def test_sam2_hf_answers_clicks_as_sam2_does(both, image):
    points = torch.rand(7, 1, 2, generator=torch.Generator().manual_seed(3))
    for three in (True, False):
        answers = [maker.decode_with_tokens(maker.encode(image), points, None, three) for maker in both]
        for mine, other in zip(*answers, strict=True):
            mine, other = mine.float(), other.float()
            torch.testing.assert_close(mine, other, rtol=2**-9, atol=1e-4 * float(mine.abs().max()))


def test_sam2_hf_finds_the_regions_of_sam2(both):
    for options in ({}, {"fuse_mask": False, "box_nms_thresh": 1.0}):
        makers = [type(maker)(maker.model, **LOOSE, **options) for maker in both]
        first, second = (maker.generate(IMAGE, (131, 197), (262, 394)) for maker in makers)
        assert len(first) == len(second) >= 1 + 3 * len(options)
        torch.testing.assert_close(first.predicted_iou, second.predicted_iou, rtol=0, atol=1e-5)
        assert (first.binary() != second.binary()).float().mean() < 1e-3
    boxes = [[11, 13, 101, 97], [3, 5, 47, 43]]
    first, second = (masks_from_boxes(maker, IMAGE, boxes) for maker in both)
    assert (first.binary() != second.binary()).float().mean() < 1e-3


@pytest.mark.parametrize("size", SIZES)
def test_the_published_sizes_are_those_of_the_packages_files(size):
    described = OmegaConf.load(config_path(size)).model
    trunk, config = described.image_encoder.trunk, published_config(size)
    backbone = config.vision_config.backbone_config
    defaults = {"num_heads": 1, "stages": [2, 3, 16, 3], "window_spec": [8, 4, 14, 7]}
    defaults |= {"global_att_blocks": [12, 16, 20], "window_pos_embed_bkg_spatial_size": [14, 14]}
    wanted = defaults | OmegaConf.to_container(trunk)
    assert backbone.hidden_size == wanted.get("embed_dim", 96)
    assert backbone.blocks_per_stage == wanted["stages"]
    assert backbone.num_attention_heads == wanted["num_heads"]
    assert backbone.window_size_per_stage == wanted["window_spec"]
    assert backbone.global_attention_blocks == wanted["global_att_blocks"]
    assert backbone.window_positional_embedding_background_size == wanted["window_pos_embed_bkg_spatial_size"]
    assert config.vision_config.backbone_channel_list == list(described.image_encoder.neck.backbone_channel_list)
    assert config.prompt_encoder_config.image_size == described.image_size


def test_sam3_asks_its_tracker_as_one_would_by_hand():
    maker = Sam3MaskGenerator.example(tiny_models.sam2(), (131, 197))
    tiny_transformers.enliven(maker.model, scale=1.5)
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float() / 255
    pixels = (F.interpolate(pixels, (112, 112), mode="bilinear") - 0.5) / 0.5
    points = torch.tensor([[[0.25, 0.25]], [[0.75, 0.25]], [[0.25, 0.75]], [[0.75, 0.75]]])
    with torch.no_grad():
        expected = maker.model(pixels, input_points=points[None] * 112)
    logits, scores, _ = maker.decode_with_tokens(maker.encode(IMAGE), points)
    torch.testing.assert_close(scores, expected.iou_scores[0], rtol=0, atol=1e-6)
    wanted = expected.pred_masks[0].clamp(-32, 32)
    torch.testing.assert_close(logits.float(), wanted, rtol=2**-9, atol=1e-4 * float(wanted.abs().max()))
    assert maker.input_side == 112
    assert maker.low_res_side == 32
    masks = maker.generate(IMAGE)
    assert masks.image_size == (131, 197)
    assert set(masks.predicted_iou.tolist()) <= set(scores.flatten().tolist())


def naive_eomt(maker: EomtMasks, image: np.ndarray, size: tuple[int, int]) -> list[tuple[np.ndarray, float]]:
    """The rule of the description, for a wide image; its size as the processor rounds it: 96 on the longer side."""
    height, width = image.shape[:2]
    short = 96 * height / width
    small = round(short), int(short * width / height)
    planes = torch.from_numpy(image).permute(2, 0, 1)[None]
    resized = resize(planes, list(small), antialias=True) / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    canvas = torch.zeros(1, 3, 96, 96)
    canvas[:, :, : small[0], : small[1]] = resized
    pixels = maker._processor(images=image, return_tensors="pt")["pixel_values"]
    assert (pixels - (canvas - mean) / std).abs().max() < 1.01 / 255 / 0.224, "at most one grey level by rounding"
    with torch.no_grad():
        found = maker.model(pixels)
    masks = F.interpolate(found.masks_queries_logits, (96, 96), mode="bilinear")[:, :, : small[0], : small[1]]
    masks = F.interpolate(masks, size, mode="bilinear")[0].sigmoid().numpy()
    classes = found.class_queries_logits[0].softmax(-1)
    taken = [
        (float(p.max()), mask)
        for p, mask in zip(classes, masks, strict=True)
        if p.argmax() < classes.shape[1] - 1 and p.max() >= maker.score_thresh
    ]
    owner = np.argmax([p * mask for p, mask in taken], 0)
    regions = []
    for number, (p, mask) in enumerate(taken):
        own, won = mask >= maker.mask_thresh, owner == number
        if (own & won).any() and won.sum() > maker.overlap_thresh * own.sum():
            regions.append((own & won, p))
    return regions


@pytest.mark.parametrize(
    ("score", "mask", "overlap"), [(0.0, 0.5, 0.0), (0.2, 0.5, 0.3), (0.25, 0.4, 0.8), (1.0, 0.5, 0.8)]
)
def test_eomt_is_the_naive_rule(score, mask, overlap):
    maker = EomtMasks.example(tiny_models.sam2(), (131, 197))
    tiny_transformers.enliven(maker.model, seed=11, scale=1.5)
    maker = EomtMasks(maker.model, score, mask, overlap)
    found = maker.generate(IMAGE, (53, 79), (131, 197))
    expected = naive_eomt(maker, IMAGE, (131, 197)) if score < 1 else []
    assert len(found) == len(expected)
    assert score == 1.0 or len(found) > (overlap < 0.5)
    regions = found.soft.numpy()
    for region, wanted in zip(regions, expected, strict=True):
        assert (region != wanted[0]).mean() < 1e-3  # where two queries are equal up to rounding
    np.testing.assert_allclose(found.predicted_iou, [p for _, p in expected], atol=1e-3)
    assert not len(found) or regions.sum(0).max() <= 1, "no pixel is in two regions"
    assert found.image_size == (53, 79)


@pytest.mark.parametrize("name", ["sam2-hf", "sam3", "eomt"])
def test_a_folder_in_the_hubs_layout_gives_the_model(tmp_path, name):
    source = SOURCES[name]
    maker = source.generator.example(tiny_models.sam2(), (37, 53))
    maker.model.save_pretrained(tmp_path, max_shard_size="100KB")
    loaded = source.make(tmp_path, **{} if name == "eomt" else {"points_per_side": 2})
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in maker.model.state_dict().items())
    if name == "eomt":
        loaded = EomtMasks.from_weights(tmp_path, score_thresh=0.0, overlap_thresh=0.0)
        assert torch.equal(loaded.generate(IMAGE).soft, maker.generate(IMAGE).soft)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json, expected a repository"):
        source.make(tmp_path)


def test_a_preset_takes_the_source_by_name(tmp_path):
    EomtMasks.example(tiny_models.sam2(), (37, 53)).model.save_pretrained(tmp_path)
    segmenter = build(TextRegionSegmenter, "tiny", mask_generator="eomt", sam2_checkpoint=tmp_path, device="cpu")
    assert isinstance(segmenter.mask_generator, EomtMasks)
    segmenter.segment(IMAGE, ["dog", "sky"])
    with pytest.raises(InputError, match="random weights are not for the mask source eomt"):
        build(TextRegionSegmenter, "tiny", mask_generator="eomt", random_weights=True)


def test_weights_of_another_model_or_none_are_one_line(tmp_path):
    model = EomtMasks.example(tiny_models.sam2(), (37, 53)).model
    model.save_pretrained(tmp_path / "eomt")
    with pytest.raises(InputError, match=r"(does not fit|holds no) Sam2Model"):
        SOURCES["sam2-hf"].make(tmp_path / "eomt")
    (tmp_path / "eomt" / "model.safetensors").write_bytes(b"half a file")
    with pytest.raises(InputError, match="holds no EomtForUniversalSegmentation for the mask source eomt"):
        SOURCES["eomt"].make(tmp_path / "eomt")
    with pytest.raises(InputError, match=r"needs the weights of owner/gone, .* HF_HUB_OFFLINE is set|not to be had"):
        SOURCES["sam3"].make("owner/gone")
    with pytest.raises(InputError, match="no folder a/b/c"):
        SOURCES["eomt"].make("a/b/c")
    with pytest.raises(InputError, match=r"got score_thresh 2, expected a number in 0\.\.1"):
        EomtMasks(model, 2)


def test_a_file_of_a_published_size_is_recognised_and_another_refused(tmp_path):
    torch.save({"model": tiny_models.sam2().state_dict()}, tmp_path / "tiny.pt")
    with pytest.raises(InputError, match=r"is none of the SAM 2\.1 sizes"):
        SOURCES["sam2-hf"].make(tmp_path / "tiny.pt")


def test_a_missing_package_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    command = "bash setup_env.sh --transformers, or pip install 'textregion[transformers]'"
    for name in ("sam2-hf", "sam3", "eomt"):
        with pytest.raises(InputError) as error:
            SOURCES[name].make(tmp_path)
        assert str(error.value) == f"the mask source {name} needs transformers, which is not installed; run: {command}"


def test_without_the_package_sam2_all_else_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "sam2", None)  # as where it is not installed
    with pytest.raises(InputError, match=r"^SAM 2 needs the package sam2, which is not installed; .*sam2-hf"):
        load_sam2()
    assert Sam2HfMaskGenerator.example(torch.nn.Identity(), (31, 43)).input_side == 128


def test_no_module_imports_sam2_or_transformers_with_itself():
    """Both are imported where a model of theirs is made: one works without the other."""
    for path in Path(textregion.__file__).parent.rglob("*.py"):
        assert not re.search(r"^(import|from) (sam2|transformers)\b", path.read_text(), re.MULTILINE), path


def test_sam2_hf_takes_a_video_models_folder_as_the_hub_has_it(tmp_path):
    model = tiny_transformers.sam2(video=True)
    model.save_pretrained(tmp_path)
    own, found = model.state_dict(), Sam2HfMaskGenerator.from_weights(tmp_path).model.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in found.items())
