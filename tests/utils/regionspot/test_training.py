"""The training's arithmetic: schedule, reduction of the loss, one step against plain torch."""

import json
import math

import accelerate
import pytest
import torch
from PIL import Image

from textregion.errors import InputError
from textregion.regionspot.model import unit
from utils.regionspot.data import CachedImage
from utils.regionspot.training import (
    Plan,
    Trainer,
    batch_loss,
    collate,
    cut_log,
    draw_curve,
    focal_loss,
    read_log,
    repeated,
)


def test_the_published_schedule():
    plan = Plan()
    rates = {0: 2.5e-7, 500: 0.505 * 2.5e-5, 1000: 2.5e-5, 349_999: 2.5e-5, 350_000: 2.5e-6, 420_000: 2.5e-7}
    assert [plan.rate(step) for step in rates] == pytest.approx(list(rates.values()))
    assert Plan(warm_up=0, drops=()).rate(0) == 2.5e-5


def images(*counts: int) -> list[CachedImage]:
    random = torch.Generator().manual_seed(sum(counts))
    return [
        CachedImage(
            torch.randn(count, 64, generator=random),
            torch.randint(5, (count,), generator=random),
            torch.randn(17, 32, generator=random),
        )
        for count in counts
    ]


def losses(head, text, batch, repeat_boxes: bool) -> torch.Tensor:
    embeddings = head(batch.tokens, batch.clip_maps, None if repeat_boxes else batch.padding)
    return focal_loss(20 * unit(embeddings) @ text.T, batch.labels)


def test_the_loss_of_a_batch_is_that_of_its_images_alone(small_model, random):
    text, parts = unit(torch.randn(5, 24, generator=random)), images(2, 5, 3)
    whole = collate(parts, 0)
    together = batch_loss(losses(small_model.head, text, whole, False), whole.padding)
    alone = sum(losses(small_model.head, text, collate([part], 0), False).mean() for part in parts)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)


def test_it_equals_the_published_loss_where_repeating_is_even_and_not_elsewhere():
    per_box = torch.tensor([[3.0, 5.0, 0.0, 0.0], [1.0, 2.0, 4.0, 7.0]])
    padding = torch.tensor([[False, False, True, True], [False] * 4])
    even = torch.stack([per_box[0, repeated(2, 4)], per_box[1]])
    assert batch_loss(per_box, padding).item() == 4.0 + 3.5
    assert batch_loss(even, torch.zeros(2, 4, dtype=torch.bool), repeat_boxes=True).item() == 4.0 + 3.5
    uneven = torch.stack([torch.tensor([3.0, 5.0, 9.0])[repeated(3, 4)], per_box[1]])
    assert uneven[0].tolist() == [3, 5, 9, 9]
    published = batch_loss(uneven, torch.zeros(2, 4, dtype=torch.bool), repeat_boxes=True)
    assert published.item() == pytest.approx(26 / 4 + 3.5)


def test_an_even_batch_has_one_loss_in_both_forms_for_a_head_that_isolates(small_model, random):
    small_model.head.isolate = True
    text, parts = unit(torch.randn(5, 24, generator=random)), images(2, 4, 1)
    by_mask, by_repeats = collate(parts, 0), collate(parts, 0, repeat_boxes=True)
    first = batch_loss(losses(small_model.head, text, by_mask, False), by_mask.padding)
    second = batch_loss(losses(small_model.head, text, by_repeats, True), by_repeats.padding, True)
    assert first.item() == pytest.approx(second.item(), rel=1e-5)


@pytest.fixture
def trainer(tmp_path, small_model, random):
    def make(**options) -> Trainer:
        plan = Plan(**{"steps": 2, "learning_rate": 1e-2, "warm_up": 0, "drops": (), "log_every": 1, **options})
        texts = [unit(torch.randn(5, 24, generator=random))]
        return Trainer(accelerate.Accelerator(cpu=True), small_model, texts, plan, tmp_path, {"seed": 1})

    return make


def test_a_step_is_one_of_plain_torch(trainer, tmp_path):
    trained = trainer(steps=1)
    twin, batch = type(trained.model.head)(32, 24, 64, 16, 1, dropout=0), collate(images(3, 2), 0)
    twin.load_state_dict(trained.model.head.state_dict())
    optimizer = torch.optim.AdamW(twin.parameters(), 1e-2, weight_decay=1e-4)
    scale = trained.model.scale
    loss = focal_loss(
        scale * unit(twin(batch.tokens, batch.clip_maps, batch.padding)) @ trained.texts[0].T, batch.labels
    )
    loss = loss[0].mean() + loss[1, :2].mean()
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
    optimizer.step()
    trained.train([batch])
    line = read_log(tmp_path)[0]
    assert line["loss"] == pytest.approx(loss.item() / 2, rel=1e-5)
    assert line["gradient_norm"] == pytest.approx(norm.item(), rel=1e-4)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(trained.model.head.state_dict()[name], value, atol=1e-5, rtol=1e-4)
    assert not trained.model.head.training


def test_a_loss_that_is_no_number_stops_in_one_line(trainer):
    broken = images(2, 3)
    broken[0].tokens[0, 0] = math.nan
    with pytest.raises(InputError, match="the loss is nan at step 1; try a smaller --lr"):
        trainer().train([collate(broken, 0)])


def test_frozen_models_get_no_gradient(trainer):
    trained = trainer(steps=1)
    trained.train([collate(images(3, 2), 0)])
    backbone, sam = trained.model.backbone.model, trained.model.box_tokens.sam.model
    assert all(parameter.grad is None for parameter in [*backbone.parameters(), *sam.parameters()])
    assert not backbone.training
    assert not sam.training


def test_the_log_is_cut_and_drawn(tmp_path):
    lines = [{"step": step, "loss": 1 / step, "accuracy": step / 9} for step in (2, 4, 6)]
    text = "".join(f"{json.dumps(line)}\n" for line in lines)
    (tmp_path / "log.jsonl").write_text(text + '{"step": 8, "lo')
    assert read_log(tmp_path) == lines
    cut_log(tmp_path, 4)
    assert read_log(tmp_path) == lines[:2]
    with Image.open(draw_curve(tmp_path)) as curve:
        assert curve.size == (840, 420)
