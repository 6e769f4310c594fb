"""Run-time checks of every annotated signature, a place of its own for each test, and the models the tests share."""

import gc
import itertools
import os
import tempfile
from pathlib import Path

# The models here are tiny: more threads would mostly wait for each other. Programs that tests start inherit it.
os.environ.setdefault("OMP_NUM_THREADS", "1")
gc.disable()  # imports leave next to no garbage: looking for it among all they make takes seconds; see below

import isolation  # noqa: E402

# Before anything reads them. This home is that of fixtures which several tests share; see `own_place`.
HOME = tempfile.TemporaryDirectory(prefix="textregion-tests-", ignore_cleanup_errors=True)
isolation.clear(os.environ)
os.environ.update(isolation.places(Path(HOME.name)), HF_HUB_OFFLINE="1")

from jaxtyping import config, install_import_hook  # noqa: E402

# Before anything imports them. An int is a float to every user, so it is to the checker.
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook(["textregion", "utils"], CHECKER)

import pytest  # noqa: E402
import tiny_models  # noqa: E402
import torch  # noqa: E402
from huggingface_hub import constants  # noqa: E402
from hypothesis import settings  # noqa: E402
from isolation import pytest_runtest_setup, pytest_runtest_teardown, pytest_terminal_summary  # noqa: E402, F401

from textregion.masks.sam2 import Sam2MaskGenerator  # noqa: E402
from textregion.regionspot.box_tokens import Sam2BoxTokens  # noqa: E402
from textregion.regionspot.model import RegionSpot, RegionSpotHead  # noqa: E402
from textregion.tiny.models import load_clip, load_sam2  # noqa: E402

settings.register_profile("tests", deadline=None, derandomize=True, max_examples=12)
settings.load_profile("tests")
NUMBERS = itertools.count()
gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What is imported by then stays: no collection of garbage looks through these millions of objects again."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(autouse=True)
def own_place(request, monkeypatch, tmp_path_factory):
    """A home, caches and a working directory of the test's own, and torch's random numbers seeded by its name."""
    home = tmp_path_factory.getbasetemp() / "homes" / str(next(NUMBERS))
    folder = home / "folder"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    for name, value in isolation.places(home).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "huggingface" / "hub"))  # it was read on import
    torch.manual_seed(isolation.seed_of(request.node))


@pytest.fixture(scope="session")
def tiny_clip():
    """A ClipBackbone with random weights: 32 px, patch 8, 4 x 4 patches, D = 24."""
    return tiny_models.clip()


@pytest.fixture(scope="session")
def tiny_siglip():
    """A SiglipBackbone with random weights: 64 px, patch 8."""
    return tiny_models.siglip()


@pytest.fixture(scope="session")
def tiny_perception():
    """A PerceptionBackbone with random weights: 64 px, patch 8."""
    return tiny_models.perception()


@pytest.fixture(scope="session")
def tiny_sam2():
    """A SAM 2 model of the `sam2` package with random weights: 256 px, 64 x 64 low-res masks."""
    return tiny_models.sam2()


@pytest.fixture
def random():
    """A seeded torch generator."""
    return torch.Generator().manual_seed(7)


@pytest.fixture
def untyped():
    """Run-time checks of annotations off: what a user with wrong types sees."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def clip():
    """The tiny world's own CLIP."""
    return load_clip()


@pytest.fixture(scope="session")
def sam2():
    """The tiny world's own SAM 2."""
    return load_sam2()


@pytest.fixture(scope="session")
def box_tokens():
    """A SAM 2 with random weights."""
    return Sam2BoxTokens(Sam2MaskGenerator(tiny_models.sam2()), "sam2:random")


@pytest.fixture
def small_model(tiny_clip, box_tokens):
    """Random weights throughout: D = 32, E = 24, T = 64; no dropout."""
    return RegionSpot(tiny_clip, box_tokens, RegionSpotHead(32, 24, box_tokens.token_width, 16, 1, dropout=0.0))
