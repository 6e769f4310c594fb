import pytest

from utils.tinyworld.models import load_clip, load_sam2
from utils.tinyworld.scene_cache import draw_scene_set


@pytest.fixture(scope="session")
def scene_set():
    return draw_scene_set(7)


@pytest.fixture(scope="session")
def clip():
    return load_clip()


@pytest.fixture(scope="session")
def sam2():
    return load_sam2()
