"""Training from scratch on drawn scenes: the head learns to tell boxes, by SAM's tokens and not from the image alone.

Which colours are in the image can be read from CLIP's map without any box; naming one of them by chance already
recognises a third of the boxes here. So the proof is the fall when tokens are shuffled between images.
"""

import accelerate
import torch
from kills import long_form

from textregion.backbones import ClipBackbone
from textregion.regionspot.model import RegionSpot, RegionSpotHead, encode_names
from textregion.tiny.models import load_clip
from utils.regionspot.compare import score
from utils.regionspot.data import TokenCache
from utils.regionspot.training import Plan, StepBatches, Trainer, loader, read_log

TRAINED, FRESH = 250, 60
STEPS = 400


@long_form
def test_a_head_trained_from_scratch_recognises_boxes_of_fresh_scenes_by_their_tokens(
    colour_world, box_tokens, tmp_path
):
    torch.manual_seed(7)
    backbone = ClipBackbone.from_model(*load_clip(), name="tiny")
    head = RegionSpotHead(192, 128, box_tokens.token_width, hidden=64, layers=1, isolate=True)
    model = RegionSpot(backbone, box_tokens, head)
    caches = []
    for name, first, count in (("trained", 630_000, TRAINED), ("fresh", 930_000, FRESH)):
        caches.append(TokenCache(tmp_path, colour_world.read(name, first, count), model, keep_maps=True))
        caches[-1].fill(caches[-1].dataset.images, quiet=True)
    text = encode_names(backbone, caches[0].dataset.names)
    drops = (STEPS * 7 // 9,)
    plan = Plan(STEPS, batch=16, learning_rate=1e-3, warm_up=40, drops=drops, seed=7, save_every=STEPS)
    trainer = Trainer(accelerate.Accelerator(cpu=True), model, [text], plan, tmp_path, {})
    before = score(model, caches[1], text)
    trainer.train(loader(StepBatches(caches[:1], plan), 0, workers=0))
    after = score(model, caches[1], text)
    print(f"{before}\n{after}\n{read_log(tmp_path)[-1]}")
    assert after.boxes > 150
    assert before.accuracy < 0.3
    assert after.accuracy > 0.55
    assert after.shuffled < 0.45
    assert after.accuracy - after.shuffled > 0.18
