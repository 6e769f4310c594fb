import pytest

from utils.tiny.data import draw_scene_set


@pytest.fixture(scope="session")
def scene_set():
    return draw_scene_set(7)
