import pytest

from utils.tiny.scene_cache import draw_scene_set


@pytest.fixture(scope="session")
def scene_set():
    return draw_scene_set(7)
