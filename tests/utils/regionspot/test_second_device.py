"""RegionSpot's caches and training on a second device (tests/fake_accelerator.py), without float64: as on the CPU."""

import copy

import accelerate
import pytest
import tiny_models
import torch
from fake_accelerator import DEVICE, fake_accelerator

from textregion.masks import Sam2MaskGenerator
from textregion.regionspot.box_tokens import Sam1BoxTokens, Sam2BoxTokens
from textregion.regionspot.model import RegionSpot, RegionSpotHead, encode_names
from utils.regionspot.data import TokenCache
from utils.regionspot.training import Plan, StepBatches, Trainer, loader, read_log

STEPS = 2


def test_training(few, tiny_sam2, monkeypatch, tmp_path):
    torch.manual_seed(1)
    head = RegionSpotHead(32, 24, 64, 16, 1, dropout=0.0)
    runs = {}
    # accelerate asks for the address of every weight before it copies it to a file; these have none.
    monkeypatch.setattr("utils.regionspot.training.save_state", lambda *_: None)
    with fake_accelerator(float64=False):
        for name, device in (("cpu", torch.device("cpu")), ("acc", DEVICE)):
            monkeypatch.setattr(accelerate.Accelerator, "device", device)  # it knows CUDA, MPS and others, not this one
            sam2 = copy.deepcopy(tiny_sam2) if name == "acc" else tiny_sam2  # the tests share it
            tokens = Sam2BoxTokens(Sam2MaskGenerator(sam2), "sam2:random")
            model = RegionSpot(tiny_models.clip(), tokens, copy.deepcopy(head)).to(device)
            cache = TokenCache(tmp_path / name, few, model)
            assert cache.fill(few.images[:2], quiet=True)["unusable"] == 0
            text = encode_names(model.backbone, few.names)
            folder = tmp_path / f"{name} run"
            folder.mkdir()
            plan = Plan(STEPS, batch=2, learning_rate=1e-2, warm_up=0, drops=(), log_every=1, save_every=STEPS)
            trainer = Trainer(accelerate.Accelerator(cpu=True), model, [text], plan, folder, {})
            trainer.train(loader(StepBatches([cache], plan), 0, workers=0))
            runs[name] = model.head, read_log(folder), text
    (cpu, cpu_log, cpu_text), (acc, acc_log, acc_text) = runs["cpu"], runs["acc"]
    assert next(acc.parameters()).device == acc_text.device == DEVICE
    torch.testing.assert_close(acc_text.cpu(), cpu_text, rtol=0, atol=1e-6)
    for name, value in cpu.state_dict().items():
        ours, seen = acc.state_dict()[name].cpu(), torch.ones(len(value), dtype=torch.bool)
        if name.endswith("in_proj_bias"):  # softmax does not see the keys' bias: its gradient is rounding, made large
            seen[len(value) // 3 : len(value) * 2 // 3] = False
        torch.testing.assert_close(ours[seen], value[seen], rtol=1e-4, atol=1e-4, msg=name)
    for ours, theirs in zip(acc_log, cpu_log, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
    assert len(acc_log) == STEPS


def test_boxes_of_sam1(few):
    image, boxes = few.path(few.images[0]), [[3, 5, 60, 50], [0, 0, 64, 64]]
    torch.manual_seed(1)
    head = RegionSpotHead(32, 24, 64, 16, 1)
    cpu = RegionSpot(tiny_models.clip(), Sam1BoxTokens(tiny_models.sam1()), copy.deepcopy(head)).encode(image, boxes)
    with fake_accelerator(float64=False):
        source = Sam1BoxTokens(copy.deepcopy(tiny_models.sam1()))
        acc = RegionSpot(tiny_models.clip(), source, head).to("acc").encode(image, boxes)
        assert acc.tokens.device == acc.masks.soft.device == DEVICE
        torch.testing.assert_close(acc.tokens.cpu(), cpu.tokens, rtol=0, atol=1e-5)
        assert torch.equal(acc.masks.binary().cpu(), cpu.masks.binary())
