"""A run that is resumed with another option that decides its results is refused, whichever option it is."""

from dataclasses import Field, fields
from pathlib import Path

import pytest
import tiny_transformers

from eval import model, tasks
from eval.journal import Journal
from textregion.cli.arguments import parse_arguments
from textregion.cli.jobs import ImageJob, job_fingerprint, run_settings
from textregion.concepts import THRESHOLDS, ConceptLabeller
from textregion.config import SegmenterConfig
from textregion.errors import InputError
from textregion.index.memory import RegionMemory
from textregion.masks import Sam2MaskGenerator, SlicMasks
from textregion.segmenter import TextRegionSegmenter

SPEED = ("model", "points_per_batch")  # of mask sources: how they work, not what they find


def another(option: Field) -> object:
    """A value that the option may have, and has not by default."""
    if choices := option.metadata["flag"].get("choices"):
        return next(choice for choice in choices if choice != option.default)
    if option.name == "crop_size":
        return 40
    if isinstance(option.default, bool):
        return not option.default
    if isinstance(option.default, tuple):
        return tuple(side + 1 for side in option.default)
    return option.default / 2 if isinstance(option.default, float) else option.default + 1


CONFIG = {option.name: another(option) for option in fields(SegmenterConfig)}
MASKS = {f.name: another(f) for f in fields(Sam2MaskGenerator) if f.name not in (*SPEED, "dtype", "compile")}


@pytest.fixture
def identity(tiny_clip, tiny_sam2):
    """The settings of a run in its three forms: of the tasks, of the mmseg harness, of the program."""

    def made(config: dict, masks: dict, source=None) -> dict[str, dict]:
        source = source or Sam2MaskGenerator(tiny_sam2, **masks)
        concepts = ConceptLabeller(tiny_transformers.sam3_concepts())  # which label_filter asks
        segmenter = TextRegionSegmenter(tiny_clip, source, device="cpu", concepts=concepts, **config)
        run = tasks.Run("tiny", Path("unused"))
        return {
            "tasks": {"model": tasks.describe(segmenter, run)},
            "benchmarks": model.describe(model.TextRegionModel(segmenter=segmenter, classes=["cat", "sky"])),
            "program": run_settings(segmenter, parse_arguments([]), "tiny"),
        }

    return made


@pytest.mark.parametrize("option", [*CONFIG, *MASKS])
def test_every_option_that_decides_results_counts(identity, option, tmp_path):
    plain = identity({}, {})
    config = {option: CONFIG[option]} if option in CONFIG else {}
    changed = identity(config, {} if config else {option: MASKS[option]})
    for form in ("tasks", "benchmarks"):
        Journal.start(tmp_path / form, plain[form]).close()
        Journal.start(tmp_path / form, plain[form], resume=True).close()
        with pytest.raises(InputError, match=rf"made with other settings \(.*{option}"):
            Journal.start(tmp_path / form, changed[form], resume=True)
    job = ImageJob(Path("photo.png"), ("cat",))
    program = [job_fingerprint(one["program"], job, "image") for one in (plain, identity({}, {}), changed)]
    assert program[0] == program[1] != program[2]


@pytest.mark.parametrize("option", THRESHOLDS)
def test_every_option_of_sam3_concepts_counts(option, tmp_path):
    def told(**thresholds) -> tuple[dict, str]:
        labeller = ConceptLabeller(tiny_transformers.sam3_concepts(), **thresholds)
        shell = model.TextRegionModel(segmenter=labeller, method="sam3-concepts", classes=["cat", "sky"])
        settings = run_settings(labeller, parse_arguments(["--method", "sam3-concepts"]), "sam3-concepts")
        return model.describe(shell), job_fingerprint(settings, ImageJob(Path("photo.png"), ("cat",)), "image")

    (plain, program), (changed, other) = told(), told(**{option: 0.7})
    assert program == told()[1] != other
    Journal.start(tmp_path, plain).close()
    Journal.start(tmp_path, told()[0], resume=True).close()
    with pytest.raises(InputError, match=rf"made with other settings \(.*{option}"):
        Journal.start(tmp_path, changed, resume=True)


def test_the_program_knows_a_memory_by_its_content():
    """Alpha and K are options of SegmenterConfig; tests/eval/test_region_memory.py asks the benchmarks' record."""

    class Bank(RegionMemory):
        def __init__(self, content: str) -> None:
            self.content = content

        def settings(self) -> dict:
            return {"content": self.content}

    labeller = ConceptLabeller(tiny_transformers.sam3_concepts())
    job, words = ImageJob(Path("photo.png"), ("cat",)), parse_arguments([])
    settings = [run_settings(labeller, words, "tiny", bank) for bank in (None, Bank("one"), Bank("two"))]
    assert len({job_fingerprint(one, job, "image") for one in settings}) == 3


def test_another_mask_source_counts_and_speed_does_not(identity):
    plain = identity({}, {})
    assert identity({}, {"points_per_batch": 7}) == plain
    assert identity({}, {}, SlicMasks(segments=9)) != identity({}, {}, SlicMasks(segments=8))
