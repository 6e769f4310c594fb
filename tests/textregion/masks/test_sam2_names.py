"""SAM 2 of the package transformers: its own files give the sam2 package's model with its masks, and the other way."""

from pathlib import Path

import pytest
import tiny_models
import tiny_transformers
import torch
from torch import nn

from textregion.errors import InputError
from textregion.masks.sam2 import Sam2MaskGenerator, load_sam2, sam2_asset
from textregion.masks.sam2_names import MEMORY, to_sam2, to_transformers
from textregion.weights import locate

POINTS = torch.tensor([[[0.13, 0.71]], [[0.52, 0.47]], [[0.9, 0.2]]])
IMAGE = torch.randint(256, (131, 197, 3), generator=torch.Generator().manual_seed(7), dtype=torch.uint8).numpy()


def masks_of(model, video: bool):
    """What transformers' model says of the clicks on the image, squashed as ours is."""
    pixels = torch.from_numpy(IMAGE).permute(2, 0, 1)[None].float() / 255
    pixels = nn.functional.interpolate(pixels, (256, 256), mode="bilinear")
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean[:, None, None]) / std[:, None, None]
    with torch.no_grad():
        if not video:
            return model(pixels, input_points=POINTS[None] * 256)
        features = model.get_image_features(pixels, return_dict=True).fpn_hidden_states
        features[-1] = features[-1] + model.no_memory_embedding
        sizes = (64, 32, 16)
        maps = [f.permute(1, 2, 0).unflatten(2, (size, size)) for f, size in zip(features, sizes, strict=True)]
        return model._single_frame_forward(image_embeddings=maps, input_points=POINTS[None] * 256)


@pytest.mark.parametrize("shard", ["1GB", "300KB"])
@pytest.mark.parametrize("video", [False, True])
def test_a_saved_model_has_its_own_masks(tmp_path, video, shard):
    theirs = tiny_transformers.sam2(video)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    path = next(tmp_path.glob("*.index.json"), tmp_path / "model.safetensors")
    maker = Sam2MaskGenerator(load_sam2(path, tiny_models.SAM2_CONFIG), pred_iou_thresh=0.0)
    logits, scores, _ = maker.decode_with_tokens(maker.encode(IMAGE), POINTS)
    expected = masks_of(theirs, video)
    wanted = expected.pred_masks[0].clamp(-32, 32)
    assert wanted.std() > 0.1
    torch.testing.assert_close(scores, expected.iou_scores[0], rtol=0, atol=1e-6)
    torch.testing.assert_close(logits.float(), wanted.half().float(), rtol=2**-10, atol=2e-6 * float(wanted.abs().max()))
    assert isinstance(maker.model.memory_attention, nn.Identity) != video


def test_the_names_of_both_packages_are_each_others():
    ours = tiny_models.sam2().state_dict()
    theirs = to_transformers(ours)
    assert theirs.keys() == tiny_transformers.sam2().state_dict().keys()
    back = to_sam2(theirs)
    assert back.keys() == {name for name in ours if not name.startswith(MEMORY)}
    assert all(torch.equal(value, ours[name]) for name, value in back.items())
    video = to_sam2(tiny_transformers.sam2(video=True).state_dict())
    assert {name: value.shape for name, value in video.items()} == {name: value.shape for name, value in ours.items()}


def test_another_model_is_one_line(tmp_path):
    tiny_transformers.sam2().save_pretrained(tmp_path)
    with pytest.raises(InputError, match="is none of the SAM 2.1 sizes"):
        load_sam2(tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="does not fit SAM 2 .*wrong shape"):
        load_sam2(tmp_path / "model.safetensors", Path(tiny_models.__file__).parents[1] / "textregion/tiny/sam2.yaml")


def test_transformers_file_is_found_where_the_package_own_is_not(tmp_path):
    folder = tmp_path / "sam2.1-hiera-tiny"
    folder.mkdir()
    (folder / "model.safetensors").touch()
    assert locate(sam2_asset("tiny"), root=tmp_path) == folder / "model.safetensors"
    (folder / "sam2.1_hiera_tiny.pt").touch()
    assert locate(sam2_asset("tiny"), root=tmp_path) == folder / "sam2.1_hiera_tiny.pt"
