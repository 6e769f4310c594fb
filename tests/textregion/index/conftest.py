"""A small table of drawn scenes, by the tiny models' quickest settings."""

import shutil
from pathlib import Path

import pytest
from index_worlds import QUICK, write_scenes

from textregion.index import RegionIndex


@pytest.fixture(scope="session")
def quick_table(tmp_path_factory) -> Path:
    """Six images of 64 px, quickly encoded: photos/ and table.lance. Copied, never written."""
    place = tmp_path_factory.mktemp("quick")
    write_scenes(place / "photos", range(6))
    RegionIndex.create(place / "table.lance", "tiny", **QUICK).add(place / "photos")
    return place


@pytest.fixture
def quick(quick_table, tmp_path) -> Path:
    """A copy of the table; its photos stay where they are."""
    shutil.copytree(quick_table / "table.lance", tmp_path / "table.lance")
    return tmp_path / "table.lance"
