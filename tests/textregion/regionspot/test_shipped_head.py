"""The shipped head: small, as its card says, and as good on fresh scenes."""

import re

import pytest

from eval.prepare.tiny_lvis import write_tiny_lvis
from textregion.regionspot.loading import SHIPPED_HEAD
from utils.regionspot.compare import main

SCENES = 60
SEED = 50_000  # not the scenes of its card


@pytest.mark.slow
def test_it_recognises_boxes_of_fresh_scenes_by_their_tokens(tmp_path, capsys):
    write_tiny_lvis(tmp_path, SCENES, train_scenes=1, seed=SEED)
    assert main(["--data", f"tiny={tmp_path / 'lvis_tiny_val.json'}:{tmp_path / 'images'}"]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"tokens of \d+ boxes of {SCENES} images", printed)
    textregion, regionspot, shuffled, chance = (float(share) for share in re.findall(r"([\d.]+) % \|", printed))
    assert chance == 11.1
    assert textregion > 40
    assert regionspot > 62
    assert shuffled < 45
    assert regionspot - shuffled > 25


def test_it_is_small_and_its_card_lies_beside_it():
    assert SHIPPED_HEAD.stat().st_size <= 2e6
    card = (SHIPPED_HEAD.parent / "MODEL_CARD.md").read_text()
    assert "says nothing about photographs" in " ".join(card.split())


def test_bad_data_end_in_one_line(tmp_path, capsys):
    assert main(["--data", f"tiny={tmp_path / 'none.json'}:{tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith("error: no file ")
