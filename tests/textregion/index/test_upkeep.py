"""Further columns, ways in and out, and what is told of a table."""

import numpy as np
import pytest
from pyarrow import parquet

from textregion.errors import InputError
from textregion.index import RegionIndex, upkeep
from textregion.segmenter import TextRegionSegmenter


def test_own_columns_are_joined_and_filter(quick, quick_table, tmp_path):
    index = RegionIndex.open(quick, device="cpu")
    photos, table = quick_table / "photos", tmp_path / "days.csv"
    table.write_text(f"image,day\n{photos / '2.png'},7\n{photos / '4.png'},8\nelsewhere.png,9\n")
    assert upkeep.join(index, str(table)) == f"2 of 6 images have day; 1 images of {table} are not in the table"
    hits = index.search("sky", top=100, where="day > 7")
    assert {hit.image for hit in hits} == {str(photos / "4.png")}
    assert {hit.more["day"] for hit in hits} == {8}
    with pytest.raises(InputError, match="has the column day already"):
        upkeep.join(index, str(table))
    table.write_text("name,day\na,1\n")
    with pytest.raises(InputError, match="expected image and others"):
        upkeep.join(index, str(table))


def test_a_second_backbone_has_a_column_of_the_same_regions(quick, monkeypatch):
    """Another set of weights stands for another preset."""
    index, build = RegionIndex.open(quick, device="cpu"), TextRegionSegmenter.from_preset

    def stand_in(name, **options):
        return build("tiny", **options, random_weights=name == "clip-vit-b16")

    monkeypatch.setattr(TextRegionSegmenter, "from_preset", stand_in)
    before = index.tables.regions.to_arrow().drop_columns([])
    told = upkeep.add_column(index, "clip-vit-b16", device="cpu")
    assert told.startswith("column token_clip_vit_b16 (D 128): 6 images")
    other = RegionIndex.open(quick, "clip-vit-b16", device="cpu")
    after = other.tables.regions.to_arrow()
    assert after.drop_columns(["token_clip_vit_b16"]).to_pylist() == before.to_pylist()
    hits = other.search("sky", top=3)
    assert len(hits) == 3
    segmenter = other.segmenter(words_only=True)
    again = segmenter.encode_image(hits[0].image, masks=hits[0].masks)
    word = segmenter.encode_text(["sky"])[0]
    assert abs(float(again.tokens[0] @ word)) <= 1
    with pytest.raises(InputError, match="has a column of preset clip-vit-b16 already"):
        upkeep.add_column(other, "clip-vit-b16")


def test_tokens_that_were_saved_come_in_and_all_go_out(quick, quick_table, tmp_path):
    index = RegionIndex.open(quick, device="cpu")
    tokens = index.segmenter().encode_image(str(quick_table / "photos" / "1.png"))
    tokens.save(tmp_path / "scene.safetensors")
    rows = len(index)
    assert (
        upkeep.import_tokens(index, [tmp_path / "scene.safetensors"]) == f"1 images, {len(tokens)} regions from 1 files"
    )
    assert len(index) == rows + len(tokens)
    upkeep.export(index, str(tmp_path / "all.parquet"))
    content = parquet.read_table(tmp_path / "all.parquet").to_pylist()
    assert len(content) == len(index)
    own = [row["token"] for row in content if row["image"].endswith("scene.safetensors")]
    assert np.array_equal(np.array(own, np.float16), tokens.tokens.numpy().astype(np.float16))
    with pytest.raises(InputError, match=r"no tokens\.safetensors"):
        upkeep.import_tokens(index, [tmp_path / "table.lance"])


def test_what_is_told_of_a_table(quick):
    index = RegionIndex.open(quick)
    told = upkeep.stats(index)
    assert f"{len(index)} in 1 files" in told
    assert "preset tiny" in told
    assert upkeep.compact(index).startswith("compacted 1 files to 1")
    assert "searched exactly" in upkeep.build_index(index)
