import io
import struct
import zipfile
import zlib
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from textregion.errors import InputError
from textregion.masks import GroundTruthMasks, PrecomputedMasks, read_masks
from textregion.masks.given import mask_file, read_label_map
from textregion.types import RegionMasks

SIZE = (31, 43)
THING = np.zeros(SIZE, bool)
THING[4:20, 10:30] = True
LABELS = np.zeros(SIZE, np.int32)
LABELS[2:10, 3:20], LABELS[20:30, 5:40], LABELS[11:14, 2:9] = 1, 2, 3


def binary(masks: RegionMasks) -> np.ndarray:
    return masks.binary().numpy()


def forms(folder, plane: np.ndarray) -> list[RegionMasks]:
    """The regions of the same plane as PNG, npy, npz and array."""
    np.save(folder / "a.npy", plane)
    np.savez(folder / "a.npz", masks=plane)
    Image.fromarray(plane.astype(bool if plane.dtype == bool else np.uint16)).save(folder / "a.png")
    files = [read_masks(folder / f"a.{suffix}", plane.shape) for suffix in ("png", "npy", "npz")]
    image = np.zeros((*plane.shape, 3), np.uint8)
    return [*files, RegionMasks.from_array(plane, plane.shape), PrecomputedMasks(plane).generate(image)]


# ---------------------------------------------------------------- a single plane


@pytest.mark.parametrize("plane", [THING, THING * 1, THING * 255, THING * 65535], ids=["bool", "1", "255", "65535"])
def test_white_on_black_is_one_mask_in_every_form(tmp_path, plane):
    for masks in forms(tmp_path, plane):
        assert (binary(masks) == THING[None]).all()


@pytest.mark.parametrize("values", [[0, 1, 2, 3], [0, 1, 255, 3], [3, 259, 300, 1], [0, 1, 65535, 0], [0, 7, 0, 7]])
def test_a_label_map_has_the_same_regions_in_every_form(tmp_path, values):
    plane = np.array(values)[LABELS]
    expected = np.stack([plane == value for value in sorted(set(values))])
    for masks in forms(tmp_path, plane):
        assert (binary(masks) == expected).all()


@given(arrays.arrays(np.uint16, (3, 5), elements=st.sampled_from([0, 1, 2, 3, 255, 256, 259, 65535])))
def test_all_forms_of_any_plane_agree(tmp_path_factory, plane):
    found = [masks.soft.tolist() for masks in forms(tmp_path_factory.mktemp("forms"), plane)[:4]]
    assert all(masks == found[0] for masks in found)


def palette_png(path, indices: np.ndarray, colours: list[tuple[int, int, int]]) -> None:
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(np.array(colours, np.uint8).tobytes(), "RGB")
    image.save(path)


BLACK, WHITE, RED, GREEN = (0, 0, 0), (255, 255, 255), (128, 0, 0), (0, 128, 0)


@pytest.mark.parametrize(
    ("colours", "black", "white"), [([BLACK, WHITE], 0, 1), ([WHITE, BLACK], 1, 0), ([RED, WHITE, BLACK], 2, 1)]
)
def test_white_of_a_palette_is_the_thing(tmp_path, colours, black, white):
    palette_png(tmp_path / "a.png", np.where(THING, white, black), colours)
    assert (binary(read_masks(tmp_path / "a.png", SIZE)) == THING[None]).all()


def test_other_palettes_give_their_indices(tmp_path):
    palette_png(tmp_path / "a.png", LABELS, [BLACK, WHITE, RED, RED])
    assert (binary(read_masks(tmp_path / "a.png", SIZE)) == np.stack([n == LABELS for n in range(4)])).all()
    palette_png(tmp_path / "a.png", THING * 1, [BLACK, RED])
    assert (binary(read_masks(tmp_path / "a.png", SIZE)) == THING[None]).all()
    palette_png(tmp_path / "a.png", THING * 2, [BLACK, WHITE, GREEN])
    assert (binary(read_masks(tmp_path / "a.png", SIZE)) == np.stack([~THING, THING])).all()


def test_benchmark_label_maps_still_say_255_for_nobody_and_keep_16_bits(tmp_path):
    Image.fromarray(np.where(THING, 255, 0).astype(np.uint8)).save(tmp_path / "a.png")
    image = np.zeros((*SIZE, 3), np.uint8)
    assert (binary(GroundTruthMasks(tmp_path / "a.png").generate(image)) == ~THING[None]).all()
    Image.fromarray(np.where(THING, 259, 3).astype(np.uint16)).save(tmp_path / "a.png")
    assert np.unique(read_label_map(tmp_path / "a.png")).tolist() == [3, 259]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_pictures_of_several_channels_are_refused(tmp_path, mode):
    Image.fromarray((THING * 255).astype(np.uint8)).convert(mode).save(tmp_path / "a.png")
    with pytest.raises(InputError, match=f"has {len(mode)} channels, expected one channel whose values are labels"):
        read_masks(tmp_path / "a.png", SIZE)


def test_what_is_no_png_is_refused(tmp_path):
    Image.fromarray((THING * 255).astype(np.uint8)).save(tmp_path / "a.jpg")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.jpg").read_bytes())
    with pytest.raises(InputError, match="is not a PNG but JPEG; expected one whose pixel values are labels"):
        read_masks(tmp_path / "a.png", SIZE)


def test_a_png_has_the_bounds_of_images(tmp_path):
    """The header alone claims more than the limit; no pixel of it is there to decode."""
    header = b"IHDR" + struct.pack(">LLBBBBB", 70_000, 2, 8, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">L", 13) + header + struct.pack(">L", zlib.crc32(header))
    (tmp_path / "a.png").write_bytes(data + struct.pack(">L", 9) + b"IDAT")
    for read in (read_label_map, lambda path: read_masks(path, SIZE)):
        with pytest.raises(InputError, match="has 70000 x 2 pixels, more than the limit of 65535 on a side"):
            read(tmp_path / "a.png")


def test_a_png_of_the_same_aspect_is_taken_and_of_another_refused(tmp_path):
    Image.fromarray(np.kron(LABELS, np.ones((2, 2))).astype(np.uint8)).save(tmp_path / "a.png")
    masks = read_masks(tmp_path / "a.png", SIZE)
    assert (masks.soft.shape, masks.image_size) == ((4, 62, 86), SIZE)
    with pytest.raises(InputError, match=r"has size \(62, 86\), expected the image's \(86, 62\) or the same aspect"):
        read_masks(tmp_path / "a.png", (86, 62))


def test_the_file_is_named_when_its_array_is_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 43, 31), bool))
    with pytest.raises(InputError, match=r"a\.npy: got masks of shape \(2, 43, 31\) for an image of 31 x 43 pixels"):
        read_masks(tmp_path / "a.npy", SIZE)


# ---------------------------------------------------------------- arrays in files


@pytest.mark.parametrize("array", [np.zeros((0, *SIZE)), np.asfortranarray(THING[None]), THING[None].astype(">f8")])
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_arrays_of_any_layout(tmp_path, array, suffix):
    (np.save if suffix == "npy" else lambda path, a: np.savez_compressed(path, masks=a))(
        tmp_path / f"a.{suffix}", array
    )
    assert (binary(read_masks(tmp_path / f"a.{suffix}", SIZE)) == (array > 0)).all()


def npy(shape: str, dtype: str = "|b1", data: bytes = b"", version: bytes = b"\x01\0") -> bytes:
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY" + version + len(header).to_bytes(2 if version == b"\x01\0" else 4, "little") + header + data


def npz(member: bytes, name: str = "masks.npy", method: int = zipfile.ZIP_DEFLATED, flags: int = 0) -> bytes:
    """An archive; flags and an odd method are written over what the library wrote."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", min(method, zipfile.ZIP_LZMA)) as archive:
        archive.writestr(name, member)
    content = bytearray(file.getvalue())
    for start, offset in ((content.index(b"PK\x03\x04"), 6), (content.index(b"PK\x01\x02"), 8)):
        content[start + offset] |= flags
        content[start + offset + 2 : start + offset + 4] = method.to_bytes(2, "little")
    return bytes(content)


RIGHT = npy("(1, 31, 43)", data=THING.tobytes())
HOSTILE = {
    "shape.npy": npy("(99999, 99999, 99999)"),
    "huge.npy": npy("(1" + "0" * 300 + ", 31, 43)"),
    "negative.npy": npy("(-1, -31, -43)", data=bytes(9999)),
    "negative-one.npy": npy("(1, -31, 43)", data=bytes(9999)),
    "longer.npy": npy("(2, 31, 43)", data=THING.tobytes()),
    "longdouble.npy": npy("(1, 31, 43)", "<f16", bytes(16 * 31 * 43)),
    "object.npy": npy("(1, 31, 43)", "|O", bytes(8 * 31 * 43)),
    "text.npy": npy("(1, 31, 43)", "<U9999", bytes(100)),
    "wide.npy": npy("(1, 31, 43)", "|V99999999", bytes(100)),
    "version.npy": npy("(1, 31, 43)", version=b"\x09\x09", data=bytes(9999)),
    "tuple.npy": npy("31"),
    "open.npy": npy("(1, 31"),
    "tokens.npy": npy("'''"),
    "deep.npy": npy("(" * 90),
    "header.npy": b"\x93NUMPY\x02\0" + b"\xff" * 60,
    "cut.npy": RIGHT[:70],
    "zip.npy": npz(RIGHT),
    "plain.npz": RIGHT,
    "shape.npz": npz(npy("(99999, 99999, 99999)")),
    "longer.npz": npz(npy("(9999, 31, 43)", data=bytes(99))),
    "longdouble.npz": npz(npy("(1, 31, 43)", "<f16", bytes(16 * 31 * 43))),
    "encrypted.npz": npz(RIGHT, flags=1),
    "patched.npz": npz(RIGHT, flags=0x20),
    "method.npz": npz(RIGHT, method=97),
    "bz2.npz": npz(RIGHT, method=zipfile.ZIP_DEFLATED)[:60] + b"x" * 9 + npz(RIGHT)[69:],
    "lzma.npz": npz(RIGHT, method=zipfile.ZIP_LZMA)[:60] + b"x" * 9 + npz(RIGHT, method=zipfile.ZIP_LZMA)[69:],
    "name.npz": npz(RIGHT, name="arr_0.npy"),
    "cut.npz": npz(RIGHT)[:-9],
    "empty.npz": b"PK\x05\x06" + bytes(18),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_arrays_end_in_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(HOSTILE[name])
    with pytest.raises(InputError) as error:
        read_masks(tmp_path / name, SIZE)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_the_right_ones_are_read(tmp_path):
    for name, content in {"a.npy": RIGHT, "a.npz": npz(RIGHT), "lzma.npz": npz(RIGHT, method=zipfile.ZIP_LZMA)}.items():
        (tmp_path / name).write_bytes(content)
        assert (binary(read_masks(tmp_path / name, SIZE)) == THING[None]).all()


def test_no_more_is_read_than_the_bound(tmp_path, monkeypatch):
    monkeypatch.setattr("textregion.masks.given.MOST_BYTES", 2 * 31 * 43)
    np.savez_compressed(tmp_path / "a.npz", masks=np.zeros((2, *SIZE), bool))
    assert len(read_masks(tmp_path / "a.npz", SIZE)) == 2
    np.savez_compressed(tmp_path / "a.npz", masks=np.zeros((3, *SIZE), bool))
    with pytest.raises(InputError, match=r"claims an array of shape \(3, 31, 43\) of bool, more than"):
        read_masks(tmp_path / "a.npz", SIZE)


@given(st.binary(max_size=200), st.integers(0, 400), st.sampled_from(["a.npy", "a.npz"]))
def test_damage_anywhere_is_one_line_or_harmless(tmp_path_factory, damage, place, name):
    whole = RIGHT if name == "a.npy" else npz(RIGHT)
    path = tmp_path_factory.mktemp("damage") / name
    path.write_bytes(whole[:place] + damage + whole[place + len(damage) :])
    with suppress(InputError):  # and nothing else
        assert read_masks(path, SIZE).image_size == SIZE


# ---------------------------------------------------------------- folders


def test_the_file_of_an_image_in_a_folder(tmp_path):
    np.save(tmp_path / "photo.npy", THING[None])
    np.save(tmp_path / "photo.v2.npy", THING[None])
    for name in ("photo", "photo.jpg", "far/away/photo.png"):
        assert mask_file(tmp_path, name) == tmp_path / "photo.npy"
        assert len(read_masks(tmp_path, SIZE, name)) == 1
    for name in ("photo.v2", "x/photo.v2.jpg"):
        assert mask_file(tmp_path, name) == tmp_path / "photo.v2.npy"
    assert mask_file(tmp_path, "other.jpg") is mask_file(tmp_path, None) is mask_file(tmp_path / "none", "a") is None
    assert mask_file(tmp_path / "photo.npy", "other.jpg") == tmp_path / "photo.npy"
