"""SAM 2 of the package transformers: its own files give the sam2 package's model with its masks, and the other way."""

from pathlib import Path

import pytest
import tiny_models
import tiny_transformers
import torch
from torch import nn
from transformers import Sam2Model

from textregion.errors import InputError
from textregion.masks.sam2 import Sam2MaskGenerator
from textregion.masks.sam2_model import load_sam2, sam2_asset
from textregion.masks.sam2_names import MEMORY, to_sam2, to_transformers
from textregion.weights import locate

POINTS = torch.tensor([[[0.13, 0.71]], [[0.52, 0.47]], [[0.9, 0.2]]])
IMAGE = torch.randint(256, (131, 197, 3), generator=torch.Generator().manual_seed(7), dtype=torch.uint8).numpy()


@pytest.fixture(scope="module")
def wide_memory(tmp_path_factory) -> Path:
    """The tiny SAM 2 with a memory 64 wide, which transformers' code takes for granted."""
    text = tiny_models.SAM2_CONFIG.read_text()
    for narrow in ("kv_in_dim: 16", "out_dim: 16", "num_pos_feats: 16"):
        assert text.count(narrow) == 1
        text = text.replace(narrow, narrow.replace("16", "64"))
    path = tmp_path_factory.mktemp("sam2") / "wide.yaml"
    path.write_text(text)
    return path


def masks_of(model):
    """What transformers' model says of the clicks on the image, squashed as ours is."""
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float() / 255
    pixels = nn.functional.interpolate(pixels, (256, 256), mode="bilinear")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    with torch.no_grad():
        return model((pixels - mean[:, None, None]) / std[:, None, None], input_points=POINTS[None] * 256)


@pytest.mark.parametrize("shard", ["1GB", "300KB"])
@pytest.mark.parametrize("video", [False, True])
def test_a_saved_model_has_its_own_masks(tmp_path, wide_memory, video, shard):
    theirs = tiny_transformers.sam2(video)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    path = next(tmp_path.glob("*.index.json"), tmp_path / "model.safetensors")
    maker = Sam2MaskGenerator(load_sam2(path, wide_memory), pred_iou_thresh=0.0)
    logits, scores, _ = maker.decode_with_tokens(maker.encode(IMAGE), POINTS)
    images = tiny_transformers.sam2()
    if video:  # its half for images, which asks for no memory
        images = Sam2Model(tiny_transformers.sam2_config()).eval()
        found = images.load_state_dict(theirs.state_dict(), strict=False)
        assert not found.missing_keys
    expected = masks_of(images)
    wanted = expected.pred_masks[0].clamp(-32, 32)
    assert wanted.std() > 0.1
    torch.testing.assert_close(scores, expected.iou_scores[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(
        logits.float(), wanted.half().float(), rtol=2**-10, atol=2e-6 * float(wanted.abs().max())
    )
    assert isinstance(maker.model.memory_attention, nn.Identity) != video


def test_the_names_of_both_packages_are_each_others():
    ours = tiny_models.sam2().state_dict()
    theirs = to_transformers(ours)
    assert theirs.keys() == tiny_transformers.sam2().state_dict().keys()
    back = to_sam2(theirs)
    assert back.keys() == {name for name in ours if not name.startswith(MEMORY)}
    assert all(torch.equal(value, ours[name]) for name, value in back.items())
    projection = {f"memory_encoder.projection.{kind}": torch.zeros(1) for kind in ("weight", "bias")}
    assert to_sam2(tiny_transformers.sam2(video=True).state_dict() | projection).keys() == ours.keys()


def test_another_model_is_one_line(tmp_path):
    tiny_transformers.sam2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"is none of the SAM 2\.1 sizes"):
        load_sam2(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"does not fit SAM 2 .*wrong shape"):
        load_sam2(tmp_path / "model.safetensors", Path(tiny_models.__file__).parents[1] / "textregion/tiny/sam2.yaml")


def test_transformers_file_is_found_where_the_package_own_is_not(tmp_path):
    folder = tmp_path / "sam2.1-hiera-tiny"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    assert locate(sam2_asset("tiny"), root=tmp_path) == folder / "model.safetensors"
    (folder / "sam2.1_hiera_tiny.pt").touch()
    assert locate(sam2_asset("tiny"), root=tmp_path) == folder / "sam2.1_hiera_tiny.pt"
