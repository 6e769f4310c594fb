"""The head against numbers of the published program, and what its options promise."""

import bounds
import numpy as np
import pytest
import torch
from golden_data import HERE
from safetensors.torch import load_file

from textregion.regionspot.model import RegionSpotHead, unit
from utils.regionspot.training import focal_loss

FOLDER = HERE / "regionspot"
LOGIT_SCALE = 20.0


@pytest.fixture(scope="module")
def golden():
    with np.load(FOLDER / "regionspot_golden_stock.npz") as data:
        return {name: torch.from_numpy(data[name]) for name in data.files}


def make_head(**options) -> RegionSpotHead:
    head = RegionSpotHead(clip_width=32, embed_width=24, hidden=64, **options)
    head.load_state_dict(load_file(FOLDER / "regionspot_tiny.safetensors"))
    return head.eval()


def of(golden: dict, case: str, *names: str) -> list[torch.Tensor]:
    return [golden[f"{case}.{name}"] for name in names]


@pytest.mark.parametrize("case", ["case1", "case2"])
def test_outputs_loss_and_gradient_of_the_published_program(golden, case):
    head = make_head()
    tokens, clip_map, text, labels = of(golden, case, "tokens", "map", "text", "labels")
    embeddings = head(tokens, clip_map)
    logits = LOGIT_SCALE * unit(embeddings) @ text.T
    loss = focal_loss(logits, labels).sum() / labels.shape[1]
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in head.parameters()]).norm()
    projector, expected, expected_loss, expected_gradient = of(golden, case, "projector", "logits", "loss", "grad_norm")
    for found, published in ((embeddings, projector), (logits, expected)):
        torch.testing.assert_close(found, published, atol=bounds.steps(published, torch.float32, 32), rtol=0)
    assert loss.item() == pytest.approx(expected_loss.item(), rel=1e-5)
    assert gradient.item() == pytest.approx(expected_gradient.item(), rel=1e-5)


@torch.no_grad()
def test_a_token_depends_on_its_companions_as_published_and_not_when_isolated(golden):
    tokens, clip_map = of(golden, "case2", "tokens", "map")
    published, isolated = make_head(), make_head(isolate=True)
    change = (published(tokens, clip_map)[:, 0] - published(tokens[:, :1], clip_map)[:, 0]).abs().max()
    assert change > 0.5
    torch.testing.assert_close(
        isolated(tokens, clip_map), torch.cat([isolated(t, clip_map) for t in tokens.split(1, 1)], 1), atol=1e-5, rtol=0
    )


@torch.no_grad()
@pytest.mark.parametrize("isolate", [False, True])
def test_padding_changes_no_box(golden, isolate):
    head = make_head(isolate=isolate)
    tokens, clip_map = of(golden, "case2", "tokens", "map")
    padded = torch.cat([tokens, torch.randn(3, 2, 256)], 1)
    padding = torch.tensor([False] * 5 + [True] * 2).expand(3, 7)
    torch.testing.assert_close(head(padded, clip_map, padding)[:, :5], head(tokens, clip_map), atol=1e-5, rtol=0)


@torch.no_grad()
def test_without_the_class_token_the_first_row_of_the_map_is_unseen(golden):
    head = make_head(use_class_token=False)
    tokens, clip_map = of(golden, "case2", "tokens", "map")
    other = torch.cat([torch.randn(3, 1, 32), clip_map[:, 1:]], 1)
    assert torch.equal(head(tokens, clip_map), head(tokens, other))
    assert not torch.allclose(make_head()(tokens, clip_map), make_head()(tokens, other))


@pytest.mark.parametrize(("clip_width", "embed_width", "count"), [(768, 512, 24_226_304), (1024, 768, 38_853_376)])
def test_published_sizes_have_the_published_number_of_parameters(clip_width, embed_width, count):
    with torch.device("meta"):
        head = RegionSpotHead(clip_width, embed_width)
    assert sum(p.numel() for p in head.parameters()) == count


def test_focal_loss_by_hand():
    logits, labels = torch.tensor([[0.3, -1.7, 2.1]]), torch.tensor([1])
    p = 1 / (1 + np.exp([-0.3, 1.7, -2.1]))
    expected = (
        0.75 * p[0] ** 2 * -np.log(1 - p[0])
        + 0.25 * (1 - p[1]) ** 2 * -np.log(p[1])
        + 0.75 * p[2] ** 2 * -np.log(1 - p[2])
    )
    assert focal_loss(logits, labels).item() == pytest.approx(expected, rel=1e-5)
