"""CLIP's raw map against open_clip's own ways to it, and the squash against torchvision's resize."""

import numpy as np
import pytest
import tiny_models
import torch
from torch.nn import functional as F
from torchvision.transforms.functional import resize

from textregion.backbones import SPECS
from textregion.backbones.base import model_config
from textregion.regionspot.model import clip_map, position_embedding, squash

IMAGE = np.random.default_rng(3).integers(0, 256, (41, 59, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def visual():
    return tiny_models.clip_model().visual


@torch.inference_mode()
def test_it_is_what_a_hook_sees_and_what_forward_intermediates_gives(visual, random):
    images, seen = torch.randn(2, 3, 32, 32, generator=random), []
    hook = visual.transformer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    visual(images)
    hook.remove()
    options = {"normalize_intermediates": False, "intermediates_only": True, "output_fmt": "NLC"}
    other = visual.forward_intermediates(images, indices=1, output_extra_tokens=True, **options)
    found = clip_map(visual, images)
    assert found.shape == (2, 1 + 4 * 4, 32)
    assert torch.equal(found, seen[0])
    torch.testing.assert_close(
        found, torch.cat([other["image_intermediates_prefix"][-1], other["image_intermediates"][-1]], 1)
    )


@torch.inference_mode()
def test_other_sizes_resize_the_positions_of_patches_alone(visual, random):
    images = torch.randn(1, 3, 56, 56, generator=random)
    native = visual.positional_embedding
    grid = F.interpolate(native[1:].T.reshape(1, 32, 4, 4), (7, 7), mode="bicubic")
    positions = torch.cat([native[:1], grid.reshape(32, 49).T])
    stem = visual.conv1(images).flatten(2).transpose(1, 2)
    tokens = torch.cat([visual.class_embedding[None, None], stem], 1) + positions
    torch.testing.assert_close(clip_map(visual, images), visual.transformer(visual.ln_pre(tokens)))
    antialiased = F.interpolate(native[1:].T.reshape(1, 32, 4, 4), (2, 2), mode="bicubic", antialias=True)
    assert not torch.allclose(position_embedding(native, 2)[1:], antialiased.reshape(32, 4).T, atol=1e-2)


@pytest.mark.parametrize("antialias", [False, True])
def test_squash_is_torchvision_s_resize_of_the_whole_image(antialias):
    expected = resize(torch.from_numpy(IMAGE).permute(2, 0, 1) / 255, [23, 23], antialias=antialias)
    torch.testing.assert_close(squash(IMAGE, 23, antialias), expected)


def test_without_antialias_by_hand():
    image = np.zeros((4, 8, 3), np.uint8)
    image[:, 1] = 255  # columns 1 and 2 of 8 meet in column 0 of 2 (centre 1.5), so each speaks for half
    torch.testing.assert_close(squash(image, 2)[0], torch.tensor([[0.5, 0], [0.5, 0]]))
    assert squash(image, 2, antialias=True)[0, 0, 0] < 0.5


@pytest.mark.parametrize("name", [name for name, spec in SPECS.items() if spec.open_clip[1] == "openai"])
def test_openai_weights_are_read_with_their_own_activation(name):
    assert model_config(SPECS[name])["quick_gelu"]
