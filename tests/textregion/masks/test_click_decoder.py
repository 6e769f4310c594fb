"""The shared-image decoder is the sam2 package's: in double precision to its last digits, in others as exact."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sam2.modeling.sam.mask_decoder import MaskDecoder
from sam2.modeling.sam.prompt_encoder import PromptEncoder
from sam2.modeling.sam.transformer import TwoWayTransformer
from torch import nn

from textregion.errors import InputError
from textregion.masks import Sam2MaskGenerator
from textregion.masks.click_decoder import SharedImageDecoder
from textregion.masks.sam2 import DECODERS
from textregion.tiny.models import load_sam2
from textregion.tiny.scenes import draw_scene

BOX = (2, 3)


class Heads(nn.Module):
    """Prompt encoder and mask decoder of a SAM 2 with random weights, norms and biases too; nothing else of it."""

    def __init__(self, width: int, heads: int, grid=(3, 5), depth: int = 2, seed: int = 0, **options) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.size = (16 * grid[0], 16 * grid[1])
        self.sam_prompt_encoder = PromptEncoder(width, grid, self.size, mask_in_chans=16)
        transformer = TwoWayTransformer(depth, width, heads, mlp_dim=2 * width)
        self.sam_mask_decoder = MaskDecoder(
            transformer_dim=width, transformer=transformer, iou_head_hidden_dim=16, **options
        )
        self.eval().requires_grad_(False)
        for weight in self.parameters():
            if weight.ndim == 1:
                weight.add_(0.3 * torch.randn_like(weight))


def embedded(made, grid, seed: int, dtype=torch.float64) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """An image's embedding and high-resolution features."""
    random = torch.Generator().manual_seed(seed)
    width, (height, breadth) = made.sam_mask_decoder.transformer_dim, grid
    shapes = [(width, height, breadth), (width // 8, 4 * height, 4 * breadth), (width // 4, 2 * height, 2 * breadth)]
    embedding, *high = (torch.randn(1, *shape, generator=random).to(dtype) for shape in shapes)
    return embedding, high


def prompts(made, count: int, points: int, boxes: bool, seed: int, dtype=torch.float64) -> list[torch.Tensor]:
    """Sparse and dense embeddings of clicks (points a prompt, in and out) or boxes."""
    random = torch.Generator().manual_seed(seed)
    points = 2 if boxes else points
    where = torch.rand(count, points, 2, generator=random) * torch.tensor(made.size[::-1])
    labels = torch.randint(0, 2, (count, points), generator=random)
    labels = torch.tensor(BOX).expand(count, 2) if boxes else labels
    sparse, dense = made.sam_prompt_encoder(points=(where.to(dtype), labels), boxes=None, masks=None)
    return [sparse.to(dtype), dense]


def theirs(made, embedding, high, sparse, dense, multimask: bool):
    """(masks, predicted IoU, tokens) of the package's own decoder."""
    return made.sam_mask_decoder(
        image_embeddings=embedding,
        image_pe=made.sam_prompt_encoder.get_dense_pe().to(embedding),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=multimask,
        repeat_image=True,
        high_res_features=high,
    )[:3]


def ours(made, embedding, high, sparse, _dense, multimask: bool):
    decoder = SharedImageDecoder(made)
    image = decoder.image(embedding, high)
    attended = decoder.attend(image, sparse)
    found = decoder.masks(image, attended, multimask), decoder.predicted_iou(attended, multimask)
    return *found, decoder.mask_tokens(attended, multimask)


@settings(max_examples=25)
@given(
    sizes=st.sampled_from([(64, 2), (32, 4), (96, 8)]),  # the first absorbs projections, the last does not
    grid=st.sampled_from([(3, 5), (7, 2), (1, 1)]),
    count=st.integers(1, 5),
    points=st.integers(1, 3),
    boxes=st.booleans(),
    multimask=st.booleans(),
    scores=st.booleans(),
    high=st.booleans(),
    three=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_the_same_function(sizes, grid, count, points, boxes, multimask, scores, high, three, seed):
    options = {"pred_obj_scores": scores, "use_high_res_features": high, "use_multimask_token_for_obj_ptr": three}
    made = Heads(*sizes, grid, seed=seed, **options)
    made.sam_mask_decoder.double()
    image = embedded(made, grid, seed)
    asked = prompts(made, count, points, boxes, seed)
    for one, other in zip(ours(made, *image, *asked, multimask), theirs(made, *image, *asked, multimask), strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= 1e-12 * max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("points", [1, 2, 3])
def test_real_size_in_single_precision(points):
    made = Heads(256, 8, (64, 64), pred_obj_scores=True, use_high_res_features=True)
    image, asked = embedded(made, (64, 64), 1, torch.float32), prompts(made, 3, points, False, 2, torch.float32)
    masks, scores, _ = ours(made, *image, *asked, True)
    expected, expected_scores, _ = theirs(made, *image, *asked, True)
    assert (masks - expected).abs().max() <= 1e-5 * (expected.max() - expected.min())
    assert (scores - expected_scores).abs().max() <= 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("sizes", [(64, 2), (96, 8)])
def test_half_types_are_as_exact_as_the_package(dtype, sizes):
    """Mean distance from the result in double precision, for both."""
    made = Heads(*sizes, pred_obj_scores=True, use_high_res_features=True)
    (embedding, high), asked = embedded(made, (3, 5), 1, torch.float32), prompts(made, 7, 1, False, 2, torch.float32)
    with torch.autocast("cpu", dtype):
        found, package = (form(made, embedding, high, *asked, True)[0] for form in (ours, theirs))
    made.sam_mask_decoder.double()
    in_double = [part.double() for part in high], *(part.double() for part in asked)
    exact = theirs(made, embedding.double(), *in_double, True)[0]
    assert found.dtype == package.dtype == dtype
    assert (found - exact).abs().mean() <= 2 * (package - exact).abs().mean()


def test_drawn_scenes_keep_the_same_masks():
    """20 scenes, tiny weights: the same candidates survive, and the masks differ by rounding only."""
    sam2 = load_sam2()
    shared, package = (Sam2MaskGenerator(sam2, 6, decoder=name) for name in DECODERS)
    for scene in range(700, 720):
        image = draw_scene(scene).image
        found, expected = shared.generate(image), package.generate(image)
        assert torch.equal(found.group, expected.group)
        torch.testing.assert_close(found.predicted_iou, expected.predicted_iou, rtol=0, atol=1e-5)
        step = np.spacing(expected.soft.abs().max().numpy())  # of half precision
        assert (found.soft.float() - expected.soft.float()).abs().max() <= 2 * step


def test_clicks_that_cannot_pass_are_not_upscaled(monkeypatch):
    upscaled = []
    real = SharedImageDecoder.masks

    def counted(self, image, attended, multimask_output=True):
        upscaled.append(len(attended.rows))
        return real(self, image, attended, multimask_output)

    monkeypatch.setattr(SharedImageDecoder, "masks", counted)
    generator, image = Sam2MaskGenerator(load_sam2(), 4, pred_iou_thresh=0.0), draw_scene(3).image
    scores = generator.decode_with_tokens(generator.encode(image), torch.rand(1, 1, 2))[1]
    assert scores.min() > 0
    upscaled.clear()
    generator.generate(image)
    assert sum(upscaled) == 16
    upscaled.clear()
    generator.pred_iou_thresh = 1.0
    assert len(generator.generate(image)) == 0
    assert sum(upscaled) == 0


def test_other_decoders_are_refused():
    with pytest.raises(InputError, match=r"does not fit decoder 'shared' \(its mask decoder has 3 layers.*use decoder"):
        SharedImageDecoder(Heads(64, 2, depth=3))
    with pytest.raises(InputError, match="its mask decoder is a NoneType"):
        SharedImageDecoder(torch.nn.Linear(2, 2))
    with pytest.raises(InputError, match="got decoder 'fast', expected one of shared, sam2"):
        Sam2MaskGenerator(load_sam2(), decoder="fast")
