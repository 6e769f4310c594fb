"""One line each: tables of other models, damaged ones, full disks, bad filters, paths outside."""

import resource
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
from index_worlds import QUICK, contents, write_scenes

from eval.bench.search import Tokens, made_up
from textregion.cli.main import main
from textregion.errors import InputError
from textregion.index import RegionIndex
from textregion.index.encoding import decode_masks
from textregion.index.schema import TOKEN, Encoder, Meta
from textregion.index.sources import Opener, find, read_bytes
from textregion.index.store import Tables


def test_a_table_is_opened_with_the_preset_that_made_it(quick):
    assert RegionIndex.open(quick).encoder.preset == "tiny"
    assert RegionIndex.open(quick, "tiny", mask_generator="slic").encoder.options["resize_method"] == "resize"
    with pytest.raises(InputError, match="was made with preset tiny, not clip-vit-b16"):
        RegionIndex.open(quick, "clip-vit-b16")
    with pytest.raises(InputError, match="other settings than crop_size 48"):
        RegionIndex.open(quick, crop_size=48)
    with pytest.raises(InputError, match="a region index already"):
        RegionIndex.create(quick, "tiny")


def test_other_weights_of_the_same_name_are_refused(quick, monkeypatch):
    from textregion import TextRegionSegmenter

    other = TextRegionSegmenter.from_preset("tiny", random_weights=True, mask_generator=None, device="cpu")
    monkeypatch.setattr("textregion.index.region_index.segmenter_of", lambda *_, **__: other)
    with pytest.raises(InputError, match="with other weights"):
        RegionIndex.open(quick).search("sky")


@pytest.mark.parametrize("name", ["regions", "images", "state"])
def test_a_damaged_table_is_one_line(quick, name):
    for path in (quick / f"{name}.lance").rglob("*.*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match=r"damaged|cannot") as caught:
        RegionIndex.open(quick, device="cpu").search("sky")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["nothing", "file", "other", "nul\0", ""])
def test_what_is_no_table(tmp_path, place):
    (tmp_path / "file").write_text("text")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "photo.jpg").write_bytes(b"")
    with pytest.raises(InputError):
        RegionIndex.open(str(tmp_path / place) if place else str(tmp_path))


@pytest.mark.parametrize("where", ["areaa > 1", "area >", "area", "'", "1 = 'x", "read_csv('/etc/passwd')"])
def test_a_bad_filter_is_one_line(quick, where):
    index = RegionIndex.open(quick, device="cpu")
    with pytest.raises(InputError, match="cannot search with where") as caught:
        index.search("sky", where=where)
    assert "\n" not in str(caught.value)
    assert len(index.search("sky", top=3, where="area > 0; drop table regions")) == 3
    assert len(index.search("sky", top=3)) == 3


@contextmanager
def files_up_to(size: int):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("size", [0, 1000, 5000])
def test_a_full_disk_loses_nothing_that_was_committed(quick, tmp_path, size):
    more = write_scenes(tmp_path / "more", [30, 31])
    index = RegionIndex.open(quick, device="cpu")
    before = contents(index)
    with files_up_to(size), pytest.raises(InputError, match="cannot write to"):
        index.add(more)
    again = RegionIndex.open(quick, device="cpu")
    assert contents(again) == before
    assert len(again.search("sky", top=3)) == 3
    assert again.add(more).encoded == 2


@pytest.mark.parametrize("size", [*range(0, 3000, 211), 5000, 8000, 12_000, 10**6])
def test_wherever_a_disk_gets_full_all_or_nothing_of_a_commit_is_there(tmp_path, size):
    """Lance itself takes a file that was cut off for written."""
    tokens = Tokens(3, 5)
    path = tmp_path / "t.lance"
    encoder = Encoder("tiny", {}, {}, "", "made up", "", 5, 1.0, 0.0, "")
    tables = Tables.create(path, Meta({TOKEN: encoder}))
    with tables.writing() as writer:
        writer.add(list(made_up(tokens.draw(50, 0), 0)))
        writer.commit()
    told = nullcontext() if size == 10**6 else pytest.raises(InputError, match="cannot write to")
    with files_up_to(size), told, tables.writing() as writer:
        writer.remove(["/photos/000/00000000.jpg"])
        writer.add(list(made_up(tokens.draw(75, 1), 2)))
        writer.commit()
    again = Tables.open(path)
    rows = 100 if size == 10**6 else 50
    assert (again.regions.to_arrow().num_rows, again.images.to_arrow().num_rows) == (rows, rows // 25)
    with again.writing() as writer:
        writer.add(list(made_up(tokens.draw(25, 2), 9)))
        writer.commit()
    assert again.regions.to_arrow().num_rows == rows + 25


def test_images_are_opened_only_below_what_was_indexed(tmp_path):
    photos = write_scenes(tmp_path / "photos", [0])
    secret = write_scenes(tmp_path / "secret", [1]) / "1.png"
    (photos / "link.png").symlink_to(secret)
    opener = Opener([str(photos)])
    assert opener.read(str(photos / "0.png")) == (photos / "0.png").read_bytes()
    for path in (
        secret,
        photos / ".." / "secret" / "1.png",
        photos / "link.png",
        "/etc/passwd",
        f"{photos}x/0.png",
        "nul\0",
    ):
        with pytest.raises(InputError, match="outside"):
            opener.read(str(path))
    moved = tmp_path / "moved"
    photos.rename(moved)
    there = Opener([str(photos)], moved)
    assert there.read(str(photos / "0.png")) == (moved / "0.png").read_bytes()
    for path in (photos / "link.png", photos / ".." / "secret" / "1.png"):
        with pytest.raises(InputError, match="outside"):
            there.read(str(path))
    with pytest.raises(InputError, match="has changed since"):
        there.read(str(photos / "0.png"), "0" * 64)


def test_sources(tmp_path, capsys):
    photos = write_scenes(tmp_path / "photos", [0])
    write_scenes(photos / "below" / "deeper", [1])
    write_scenes(photos / ".hidden", [2])
    write_scenes(photos / "results", [3])
    (photos / "results" / "run.json").write_text("{}")
    (photos / "readme.md").write_text("text")
    names = [str(photos / "0.png"), str(photos / "below" / "deeper" / "1.png")]
    found = find([photos])
    assert (found.images, found.roots, found.folders, found.passed_over) == (names, [str(photos)], [str(photos)], 1)
    assert find([f"{photos}/**/*.png"]).images == names
    (tmp_path / "list.txt").write_text(f"# mine\n{names[0]}\n\n{tmp_path}/gone.png\n")
    listed = find([], [tmp_path / "list.txt"])
    assert listed.images == sorted([names[0], f"{tmp_path}/gone.png"])
    assert listed.folders == []
    for bad in ("nowhere", tmp_path / "nothing*", "nul\0", photos / "readme.md" / "x"):
        with pytest.raises(InputError):
            find([str(bad)])
    with pytest.raises(InputError, match="no file"):
        read_bytes("/dev/zero")


@pytest.mark.parametrize(
    "code",
    [
        {"height": 4, "width": 4, "counts": b"0"},
        {"height": 4, "width": 4, "counts": b"\xff\xff"},
        {"height": -4, "width": 4, "counts": b"`0"},
        {"height": 1 << 20, "width": 1 << 20, "counts": b"oooooo0"},
    ],
)
def test_a_hostile_mask_is_refused(code):
    with pytest.raises(InputError, match="damaged table"):
        decode_masks([code])


def test_the_programs_say_it_in_one_line(quick, tmp_path, capsys):
    lines = {
        ("search", str(tmp_path / "none.lance"), "sky"): "no region index at",
        ("search", str(quick)): "got nothing to look for",
        ("search", str(quick), "sky", "--box", "1,2,3,4"): "without an image",
        ("search", str(quick), "sky", "--preset", "clip-vit-b16"): "not clip-vit-b16",
        ("search", str(quick), "sky", "--where", "nonsense ="): "cannot search with where",
        ("search", str(quick), "sky", "--top", "5000"): "at most 1000",
        ("index", "--to", str(tmp_path / "none.lance")): "no region index at",
        ("index", "nowhere", "--to", str(quick)): "no file or folder nowhere",
        ("index", "--to", str(quick), "--prune"): "without images",
        ("index", "--to", str(quick), "--address", "auto"): "add --engine ray",
        ("index", "--to", str(quick), "--join", "none.csv"): "no file none.csv",
        ("index", "--to", str(tmp_path / "list.txt"), str(tmp_path)): "no image in",
    }
    for words, told in lines.items():
        assert main(list(words)) == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("error: ")
        assert told in error
        assert "\n" not in error


def test_nothing_heavy_is_imported_before_it_is_needed_and_a_missing_extra_is_one_line(tmp_path):
    code = "import sys, textregion, textregion.cli.main as program\n"
    code += "assert not {'lancedb', 'lance', 'ray', 'pyarrow'} & set(sys.modules)\n"
    code += "sys.modules['lancedb'] = sys.modules['pyarrow'] = sys.modules['ray'] = None\n"
    code += "sys.exit([program.main(words.split()) for words in sys.argv[1:]] != [2, 2])"
    write_scenes(tmp_path / "photos", [0, 1])
    index = f"index {tmp_path}/photos --to {tmp_path}/t.lance --preset tiny"
    segment = f"segment {tmp_path}/photos -l sky --preset tiny --engine ray --output {tmp_path}/out"
    root = Path(__file__).resolve().parents[3]
    done = subprocess.run([sys.executable, "-c", code, index, segment], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for layer in ("search", "cluster"):
        assert f"run: bash setup_env.sh --{layer}, or pip install 'textregion[{layer}]'\n" in done.stderr


def test_quick_settings_are_those_of_the_table(quick):
    settings = RegionIndex.open(quick).encoder.settings
    assert settings["masks"]["source"] == QUICK["mask_generator"]
    assert np.isclose(np.linalg.norm(RegionIndex.open(quick).encoder.embedding), 1, atol=1e-2)
