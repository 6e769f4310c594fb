import io
import struct
import subprocess
import sys
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from textregion.errors import InputError
from textregion.image_files import FORMATS
from textregion.images import (
    BYTES_PER_PIXEL,
    SPARE_BYTES,
    format_and_orientation,
    keep_ratio_size,
    load_image,
    open_image,
    resize_keep_ratio,
)

sides = st.integers(1, 3000)


def picture(height: int = 13, width: int = 17) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: Image.Image, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, **({"format": "PNG"} | options))
    return buffer.getvalue()


# ---------------------------------------------------------------- every way in


def test_all_ways_in_give_the_same_pixels(tmp_path):
    array = picture()
    image = Image.fromarray(array)
    image.save(tmp_path / "ä picture.png")
    path = tmp_path / "ä picture.png"
    for given_ in (array, image, path, str(path), path.read_bytes(), bytearray(path.read_bytes())):
        loaded = load_image(given_)
        np.testing.assert_array_equal(loaded, array)
        assert loaded.dtype == np.uint8
        assert loaded.flags["C_CONTIGUOUS"]


def test_views_of_arrays_become_contiguous():
    array = picture()[::-1, ::2]
    np.testing.assert_array_equal(load_image(array), array)
    assert load_image(array).flags["C_CONTIGUOUS"]


def test_one_pixel():
    assert load_image(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))).tolist() == [[[1, 2, 3]]]


# ---------------------------------------------------------------- modes


def test_grey_arrays_and_images_are_repeated():
    grey = picture()[:, :, 0]
    expected = np.stack([grey] * 3, 2)
    for given_ in (grey, grey[:, :, None], Image.fromarray(grey), encoded(Image.fromarray(grey))):
        np.testing.assert_array_equal(load_image(given_), expected)


def test_black_and_white():
    bits = picture()[:, :, 0] > 127
    np.testing.assert_array_equal(load_image(encoded(Image.fromarray(bits))), np.stack([bits * np.uint8(255)] * 3, 2))


def test_palette():
    image = Image.fromarray(picture()).quantize(7)
    np.testing.assert_array_equal(load_image(encoded(image)), np.array(image.convert("RGB")))


def test_palette_with_transparency_lies_over_white():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    loaded = load_image(encoded(image, transparency=1))
    assert loaded.tolist() == [[[10, 20, 30], [255, 255, 255]]]


@pytest.mark.parametrize(("alpha", "expected"), [(255, [10, 20, 30]), (0, [255, 255, 255]), (51, [206, 208, 210])])
def test_transparency_lies_over_white(alpha, expected):
    array = np.array([[[10, 20, 30, alpha]]], np.uint8)
    for given_ in (array, Image.fromarray(array), encoded(Image.fromarray(array))):
        np.testing.assert_allclose(load_image(given_)[0, 0], expected, atol=1)


def test_grey_with_transparency():
    image = Image.fromarray(np.array([[[40, 255], [40, 0]]], np.uint8), mode=None)
    assert image.mode == "LA"
    assert load_image(encoded(image)).tolist() == [[[40] * 3, [255] * 3]]


def test_cmyk():
    image = Image.fromarray(picture()).convert("CMYK")
    loaded = load_image(encoded(image, format="TIFF"))
    np.testing.assert_array_equal(loaded, np.array(image.convert("RGB")))


def grey(*values: int) -> list:
    """One row of grey RGB pixels."""
    return [[[value] * 3 for value in values]]


@pytest.mark.parametrize("mode", ["I;16", "I;16L", "I;16B", "I;16N"])
def test_sixteen_bits_are_scaled_to_eight(mode):
    values = np.array([[0, 257, 32896, 65535]], ">u2" if mode == "I;16B" else "<u2")
    image = Image.frombytes(mode, (4, 1), values.tobytes())
    assert load_image(image).tolist() == grey(0, 1, 128, 255)
    if mode == "I;16":
        for form in ("PNG", "TIFF", "PPM"):
            assert load_image(encoded(image, format=form)).tolist() == grey(0, 1, 128, 255)
            assert load_image(Image.open(io.BytesIO(encoded(image, format=form)))).tolist() == grey(0, 1, 128, 255)


def test_dark_sixteen_bits_stay_dark():
    """The format says which value is white, however dark the picture is."""
    image = Image.fromarray(np.array([[0, 129, 200]], np.uint16))
    for form in ("PNG", "TIFF", "PPM"):
        assert load_image(encoded(image, format=form)).tolist() == grey(0, 1, 1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.int32([[0, 200, 255]]), grey(0, 200, 255)),
        (np.int32([[0, 256, 65535]]), grey(0, 1, 255)),
        (np.float32([[0, 0.5, 1]]), grey(0, 128, 255)),
        (np.float32([[0.25, 0.3]]), grey(64, 76)),
        (np.float32([[0, 200, 255]]), grey(0, 200, 255)),
        (np.float32([[0, 256, 65535]]), grey(0, 1, 255)),
    ],
)
def test_numbers_are_scaled_by_their_white(values, expected):
    image = Image.fromarray(values)
    assert load_image(image).tolist() == expected
    assert load_image(encoded(image, format="TIFF")).tolist() == expected


@pytest.mark.parametrize(
    "values",
    [
        np.int32([[-1, 5]]),
        np.int32([[0, 65536]]),
        np.float32([[-0.5, 1]]),
        np.float32([[0.5, 1.5]]),
        np.float32([[0.5, np.nan]]),
        np.float32([[np.inf, 1]]),
        np.float32([[0, 70000]]),
    ],
)
def test_numbers_without_a_stated_white_are_refused(values):
    for given_ in (Image.fromarray(values), encoded(Image.fromarray(values), format="TIFF")):
        message = refused(given_)
        assert f"values from {values.min():g} to {values.max():g}" in message
        assert "expected" in message


GREY = [[[7, 7, 7], [200, 200, 200]]]
COLOURS = [[[0, 0, 0], [250, 10, 60]]]


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("1", b"\x40", [[[0] * 3, [255] * 3]]),
        ("L", [7, 200], GREY),
        ("LA", [7, 255, 200, 255], GREY),
        ("LA", [7, 0, 200, 255], [[[255] * 3, [200] * 3]]),
        ("La", [7, 255, 200, 255], GREY),
        ("La", [0, 0, 200, 255], [[[255] * 3, [200] * 3]]),
        ("P", [0, 1], COLOURS),
        ("PA", [0, 255, 1, 255], COLOURS),
        ("PA", [0, 0, 1, 255], [[[255] * 3, COLOURS[0][1]]]),
        ("RGB", [0, 0, 0, 250, 10, 60], COLOURS),
        ("RGBX", [0, 0, 0, 0, 250, 10, 60, 0], COLOURS),
        ("RGBA", [0, 0, 0, 255, 250, 10, 60, 0], [[[0] * 3, [255] * 3]]),
        ("RGBa", [0, 0, 0, 255, 0, 0, 0, 0], [[[0] * 3, [255] * 3]]),
        ("RGBa", [100, 0, 0, 100, 0, 0, 0, 51], [[[255, 155, 155], [204] * 3]]),
        ("CMYK", [0, 0, 0, 255, 5, 245, 195, 0], COLOURS),
        ("YCbCr", [7, 128, 128, 200, 128, 128], GREY),
        ("HSV", [0, 0, 7, 99, 0, 200], GREY),
        ("LAB", [0, 0, 0, 255, 0, 0], [[[0] * 3, [255] * 3]]),
    ],
)
def test_every_mode_of_pillow(mode, values, expected):
    image = Image.frombytes(mode, (2, 1), bytes(values))
    if mode in ("P", "PA"):
        image.putpalette([*COLOURS[0][0], *COLOURS[0][1]])
    np.testing.assert_allclose(load_image(image), expected, atol=1)


def test_no_mode_of_pillow_lacks_a_meaning():
    for mode in Image.MODES:
        assert load_image(Image.new(mode, (3, 2))).shape == (2, 3, 3)


def test_a_palette_with_alpha_lies_over_white():
    image = Image.new("RGBA", (2, 1), (9, 9, 9, 0)).quantize(4)
    assert (image.mode, image.palette and image.palette.mode) == ("P", "RGBA")
    assert load_image(image).tolist() == grey(255, 255)


def test_sixteen_bits_with_a_transparent_value():
    image = Image.fromarray(np.array([[0, 4660, 65535]], np.uint16))
    assert load_image(encoded(image, transparency=4660)).tolist() == grey(0, 255, 255)


TAG = {"width": 256, "length": 257, "bits": 258, "compression": 259, "photometric": 262, "strips": 273, "samples": 277}
TAG |= {"strip_bytes": 279, "format": 339, "tile_width": 322, "tile_length": 323, "tiles": 324, "tile_bytes": 325}


def tiff(content: bytes, **tags: int) -> bytes:
    """A little-endian TIFF with the content at byte 8; tags of one number each."""
    content += bytes(len(content) % 2)
    entries = sorted((TAG[name], value) for name, value in tags.items())
    body = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in entries)
    return b"II*\0" + struct.pack("<L", 8 + len(content)) + content + struct.pack("<H", len(entries)) + body + bytes(4)


def one_row(content: bytes, width: int, **tags: int) -> bytes:
    size = {"width": width, "length": 1, "samples": 1, "strips": 8, "strip_bytes": len(content)}
    return tiff(content, **size, **({"photometric": 1, "compression": 1} | tags))


def test_depths_that_only_a_tiff_has():
    assert load_image(one_row(b"\xff\xf8\0", 2, bits=12)).tolist() == grey(255, 128)
    assert load_image(one_row(struct.pack("<2H", 0, 65535), 2, bits=16, photometric=0)).tolist() == grey(255, 0)
    assert load_image(one_row(struct.pack("<2h", 0, 200), 2, bits=16, format=2)).tolist() == grey(0, 200)
    assert "from -5 to 3" in refused(one_row(struct.pack("<2h", -5, 3), 2, bits=16, format=2))
    assert "from -1 to 3" in refused(one_row(struct.pack("<2L", 2**32 - 1, 3), 2, bits=32))
    assert "signed bytes" in refused(one_row(struct.pack("<2b", -5, 3), 2, bits=8, format=2))


def test_exif_rotation_is_applied():
    array = picture(3, 5)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    loaded = load_image(encoded(Image.fromarray(array), exif=exif))
    np.testing.assert_array_equal(loaded, np.rot90(array, -1))
    for form in ("PNG", "JPEG", "TIFF", "WEBP"):
        content = io.BytesIO()
        Image.fromarray(array).save(content, form, exif=exif)
        assert format_and_orientation(content.getvalue()) == (form, 6)
    content = io.BytesIO()
    Image.fromarray(array).save(content, "BMP")
    assert format_and_orientation(content.getvalue()) == ("BMP", 1)


def test_an_animation_gives_its_first_frame():
    frames = [Image.new("RGB", (5, 3), colour) for colour in ("red", "blue")]
    loaded = load_image(encoded(frames[0], format="GIF", save_all=True, append_images=frames[1:]))
    np.testing.assert_array_equal(loaded, np.tile(np.uint8([255, 0, 0]), (3, 5, 1)))


# ---------------------------------------------------------------- what is refused


def refused(given_, **options) -> str:
    with pytest.raises(InputError) as error:
        load_image(given_, **options)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", FORMATS)
def test_truncated_files(kind, tmp_path):
    data = encoded(Image.fromarray(picture(131, 173)), format=kind)
    assert load_image(data).shape == (131, 173, 3)
    for share in (0.1, 0.5, 0.8):
        path = tmp_path / f"{share}.{kind.lower()}"
        path.write_bytes(data[: int(len(data) * share)])
        for given_ in (path, path.read_bytes(), io.BytesIO(path.read_bytes())):
            message = refused(given_)
            assert "damaged or truncated" in message or "not an image" in message
        with suppress(Image.UnidentifiedImageError, OSError, ValueError), Image.open(path) as opened:
            assert "the given image is damaged or truncated" in refused(opened)


RAISED = [OSError, EOFError, ValueError, UnicodeDecodeError, TypeError, SyntaxError, KeyError, IndexError, RuntimeError]
RAISED += [ZeroDivisionError, OverflowError, AttributeError, AssertionError, NotImplementedError, RecursionError]
RAISED += [BufferError, struct.error, zlib.error, Image.DecompressionBombError, Image.DecompressionBombWarning]
RAISED += [UserWarning, Image.UnidentifiedImageError, MemoryError]


@pytest.mark.parametrize("kind", RAISED)
def test_whatever_a_decoder_raises_names_the_image(kind, monkeypatch, tmp_path):
    error = kind("utf-8", b"", 0, 1, "odd") if kind is UnicodeDecodeError else kind("odd")

    class Odd(Image.Image):
        def load(self):
            raise error

    def open_file(*_):
        raise error

    assert "the given image" in refused(odd_image(Odd))
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(Image.new("RGB", (2, 2))))
    Image.init()
    monkeypatch.setitem(Image.OPEN, "PNG", (open_file, Image.OPEN["PNG"][1]))
    assert str(path) in refused(path)


def odd_image(kind: type[Image.Image]) -> Image.Image:
    """An image of 2 x 2 pixels that is of a class of its own."""
    image = kind()
    image.im, image._mode, image._size = Image.new("RGB", (2, 2)).im, "RGB", (2, 2)
    return image


def test_pil_images_that_cannot_be_decoded_any_more(tmp_path):
    Image.fromarray(picture()).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as left:
        pass
    closed = Image.open(tmp_path / "a.png")
    closed.close()
    for image in (left, closed):
        assert "the given image is damaged or truncated" in refused(image)


def test_binary_files_are_read_from_their_start(tmp_path):
    array = picture()
    Image.fromarray(array).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    with (tmp_path / "a.png").open("rb") as file:
        file.read(100)
        for given_ in (file, io.BytesIO(data), memoryview(data)):
            np.testing.assert_array_equal(load_image(given_), array)
    assert "closed file" in refused(file)
    assert "gives str, expected bytes" in refused(io.StringIO("hello"))
    with (tmp_path / "a.png").open("wb") as file:
        assert "the given file" in refused(file)


def test_the_own_mode_of_a_file_and_its_own_turn():
    image = Image.fromarray(picture(3, 5)).quantize(7)
    exif = Image.Exif()
    exif[0x0112] = 6
    opened = open_image(encoded(image, exif=exif))
    assert (opened.mode, opened.size) == ("P", (5, 3))
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(image))


def test_every_cut_of_a_small_file_is_refused():
    data = encoded(Image.fromarray(picture()))
    for end in range(0, len(data) - 30, 13):  # the last bytes are checksums that Pillow does not miss
        refused(data[:end])


@pytest.mark.parametrize("content", [b"", b"hello, I am a text file\n", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_files_that_are_no_images(content, tmp_path):
    path = tmp_path / "image.png"
    path.write_bytes(content)
    assert str(path) in refused(path)
    refused(content)


def test_a_file_that_may_not_be_read_is_not_called_damaged(tmp_path, monkeypatch):
    def forbidden(*_):
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (2, 2))))
    monkeypatch.setattr(Path, "open", forbidden)
    assert refused(tmp_path / "a.png") == f"cannot read {tmp_path / 'a.png'} (Permission denied)"


def test_folders_and_missing_files(tmp_path):
    assert "no image file at" in refused(tmp_path)
    assert "no image file at" in refused(tmp_path / "missing.png")
    assert "no image file at" in refused("")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 7, 3), np.float32),
        np.zeros((5, 7, 3), np.int64),
        np.zeros((5, 7, 3), bool),
        np.zeros((5, 7, 2), np.uint8),
        np.zeros((3, 5, 7), np.uint8),
        np.zeros((1, 5, 7, 3), np.uint8),
        np.zeros(7, np.uint8),
    ],
)
def test_bad_arrays(array):
    message = refused(array)
    assert str(array.shape) in message
    assert "expected (H, W, 3) uint8 RGB" in message


@pytest.mark.parametrize("shape", [(0, 5, 3), (5, 0, 3), (0, 0)])
def test_images_without_pixels(shape):
    assert "at least 1 x 1" in refused(np.zeros(shape, np.uint8))


def test_the_size_limit_holds_before_decoding():
    big = Image.new("RGB", (1000, 200))
    data = encoded(big)
    for given_ in (data, big, np.array(big)):
        assert "1000 x 200 pixels, more than the limit of 0.1 million" in refused(given_, max_pixels=100_000)
    assert "more than the limit" in refused(data[:60], max_pixels=100_000)  # no pixel of this is there to decode
    assert load_image(data, max_pixels=200_000).shape == (200, 1000, 3)


def test_an_enormous_tile_of_a_small_tiff_is_refused():
    """The decoder would take 1.6 GB for a tile, of which 16 x 16 pixels are the picture."""
    tags = {"width": 16, "length": 16, "bits": 8, "photometric": 1, "samples": 1, "compression": 8}
    data = tiff(zlib.compress(bytes(64)), **tags, tile_width=40_000, tile_length=40_000, tiles=8, tile_bytes=12)
    assert "a tile of the given bytes has 40000 x 40000 pixels" in refused(data)
    assert "a tile of the given image has 40000 x 40000 pixels" in refused(Image.open(io.BytesIO(data)))


def two_sizes(small: int, large: int) -> dict[str, bytes]:
    """Files that state a small size in one place and a large one in another; the pixels, if any, are of the small."""
    image, sides = Image.new("L", (small, small), 7), (large, large)
    jpeg, vp8, gif, png = (encoded(image, format=form) for form in ("JPEG", "WEBP", "GIF", "PNG"))
    frame = jpeg.index(b"\xff\xc0")
    other = jpeg[frame : frame + 5] + struct.pack(">HH", *sides) + jpeg[frame + 9 : frame + 13]
    files = {"JPEG, the second": jpeg[: frame + 13] + other + jpeg[frame + 13 :]}
    files["JPEG, the first"] = jpeg[:frame] + other + jpeg[frame:]
    picture = vp8[12:]
    lie = picture[:14] + struct.pack("<HH", *sides) + picture[18:]  # behind "VP8 ", its length, its tag and its start

    def three_bytes(*numbers: int) -> bytes:
        return b"".join((number - 1).to_bytes(3, "little") for number in numbers)

    def webp(flags: int, canvas: int, content: bytes) -> bytes:
        body = b"WEBPVP8X\x0a\0\0\0" + bytes([flags, 0, 0, 0]) + three_bytes(canvas, canvas) + content
        return b"RIFF" + struct.pack("<L", len(body)) + body

    def animated(side: int, content: bytes) -> bytes:
        told = bytes(6) + three_bytes(side, side) + bytes(4) + content
        return b"ANIM\6\0\0\0" + bytes(6) + b"ANMF" + struct.pack("<L", len(told)) + told

    files["WebP, the frame"], files["WebP, the canvas"] = webp(0, small, lie), webp(0, large, picture)
    files["WebP, the moving frame"] = webp(2, small, animated(small, lie))
    files["WebP, the moving frame and its header"] = webp(2, small, animated(large, lie))
    files["WebP, the moving canvas"] = webp(2, large, animated(small, picture))
    files["GIF, the screen"] = gif[:6] + struct.pack("<HH", *sides) + gif[10:]
    place = gif.index(b",")
    files["GIF, the frame"] = gif[: place + 5] + struct.pack("<HH", *sides) + gif[place + 9 :]
    header = png[12:16] + struct.pack(">LL", *sides) + png[24:29]
    second = png[8:12] + header + struct.pack(">L", zlib.crc32(header))
    files["PNG, the first"], files["PNG, the second"] = png[:8] + second + png[8:], png[:33] + second + png[33:]
    within = encoded(image, format="TIFF", compression="jpeg")
    place = within.index(b"\xff\xc0") + 5
    files["TIFF, its JPEG"] = within[:place] + struct.pack(">HH", *sides) + within[place + 4 :]
    return files


WITH_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from textregion.errors import InputError
from textregion.images import load_image
load_image(sys.argv[1])
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 80_000_000,) * 2)
for path in sys.argv[2:]:
    try:
        print(load_image(path, max_pixels=1_000_000).shape)
    except InputError as error:
        print(error)
"""


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="bounds memory as Linux can")
def test_no_second_size_in_a_file_is_decoded(tmp_path):
    """As large as stated in one place they would take 81 MB and more; there is less."""
    files = {"whole": encoded(Image.new("RGB", (16, 16)), format="PNG"), **two_sizes(16, 9000)}
    paths = [tmp_path / str(number) for number in range(len(files))]
    for path, data in zip(paths, files.values(), strict=True):
        path.write_bytes(data)
    command = [sys.executable, "-c", WITH_LITTLE_MEMORY, *map(str, paths)]
    root = Path(__file__).parents[2]
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=60)
    answers = run.stdout.splitlines()
    assert len(answers) == len(files) - 1, run.stderr
    for name, answer in zip(list(files)[1:], answers, strict=True):
        is_stated = name in ("JPEG, the second", "PNG, the second", "GIF, the screen", "GIF, the frame")
        expected = "9000 x 9000 pixels, more than the limit" if is_stated else "damaged or truncated"
        assert expected in answer or (name, answer) == ("PNG, the first", "(16, 16, 3)"), f"{name}: {answer}"


def test_what_pillow_decodes_in_python_may_be_less_large():
    """RLE of BMP fills the rest of each row byte by byte; a PPM whose white is 254 is scaled number by number."""
    width, height = 4000, 1001
    rows = b"\1\5\0\0" * height
    told = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(rows), 0, 0, 256, 0) + bytes(1024)
    bmp = b"BM" + struct.pack("<IHHI", 14 + len(told) + len(rows), 0, 0, 14 + len(told)) + told + rows
    for data in (bmp, b"P6 4000 1001 254 ", b"P3 4000 1001 255 "):
        assert "4000 x 1001 pixels, more than the limit of 4 million of its kind of" in refused(data)
    assert load_image(bmp[:18] + struct.pack("<ii", 5, 4) + bmp[26:]).shape == (4, 5, 3)
    assert load_image(b"P3 1 1 254 254 0 127").tolist() == [[[255, 0, 128]]]
    assert "damaged" in refused(b"P6 4000 1001 255 ")


def test_a_file_too_long_for_an_image_is_not_read_whole():
    class Endless(io.RawIOBase):
        asked = 0

        def read(self, size: int = -1) -> bytes:
            self.asked = max(self.asked, size)
            return bytes(size)

    source = Endless()
    assert "more than an image within the limit of 1e-05 million pixels takes" in refused(source, max_pixels=10)
    assert source.asked == SPARE_BYTES + 10 * BYTES_PER_PIXEL + 1


@pytest.mark.parametrize("form", FORMATS)
def test_pillows_own_limit_is_neither_asked_nor_changed(form, monkeypatch):
    data = encoded(Image.fromarray(picture(10, 20)), format=form)
    for limit in (7, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert load_image(data, max_pixels=200).shape == (10, 20, 3)
        assert "20 x 10 pixels, more than the limit" in refused(data, max_pixels=199)
        assert limit == Image.MAX_IMAGE_PIXELS


def test_no_switch_of_a_library_is_touched_by_threads():
    good = encoded(Image.fromarray(picture(131, 173)), format="TIFF")
    inputs = [good, good[: len(good) // 2], b"nothing", encoded(Image.new("RGB", (9, 9)), format="ICO")]

    def switches() -> tuple:
        return Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, list(warnings.filters), warnings.showwarning

    def load(number: int) -> tuple:
        with suppress(InputError):
            load_image(inputs[number % len(inputs)])
        return switches()

    before = switches()
    with ThreadPoolExecutor(8) as pool:
        assert all(during == before for during in pool.map(load, range(200)))
    assert switches() == before


def test_other_types_are_named(untyped):
    assert "type int" in refused(3)
    assert "type NoneType" in refused(None)


# ---------------------------------------------------------------- the keep-ratio resize


@given(sides, sides, st.tuples(st.integers(8, 2688), st.integers(8, 2688)))
@example(1, 3000, (8, 8))
@example(375, 500, (2016, 672))
def test_the_result_fits_and_touches_the_scale(height, width, scale):
    new_height, new_width = keep_ratio_size(height, width, scale)
    long, short = max(new_height, new_width), min(new_height, new_width)
    assert 1 <= short <= min(scale)
    assert long <= max(scale)
    assert long == max(scale) or short == min(scale)
    assert keep_ratio_size(height, width, scale[::-1]) == (new_height, new_width)
    assert keep_ratio_size(width, height, scale) == (new_width, new_height)


@given(sides, sides)
def test_the_aspect_is_kept_to_half_a_pixel(height, width):
    factor = min(2016 / max(height, width), 672 / min(height, width))
    for side, new in zip((height, width), keep_ratio_size(height, width, (2016, 672)), strict=True):
        assert abs(new - side * factor) <= 0.5 or new == 1


def test_resize_is_opencv_bilinear():
    array = picture(37, 53)
    expected = cv2.resize(array, (96, 67), interpolation=cv2.INTER_LINEAR)
    np.testing.assert_array_equal(resize_keep_ratio(array, (300, 67)), expected)


def test_resize_of_the_right_size_changes_nothing():
    array = picture(20, 50)
    np.testing.assert_array_equal(resize_keep_ratio(array, (50, 20)), array)


def test_real_photograph():
    path = Path(__file__).parents[1] / "golden" / "images" / "B_coffee.png"
    assert resize_keep_ratio(load_image(path), (300, 100)).shape == (100, 150, 3)


@pytest.mark.parametrize("name", ["x" * 300, "nul\0", "\ud800", "", ".", "/dev/zero", "/dev/null"])
def test_what_is_no_file_is_said_at_once(name):
    with pytest.raises(InputError, match="no image file at"):
        load_image(name)


def test_no_program_is_started_for_a_drawing():
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert f"expected one of {', '.join(FORMATS)}" in refused(eps)


@pytest.mark.parametrize("form", ["ICO", "ICNS", "BLP", "TGA", "DDS", "PCX", "JPEG2000"])
def test_formats_that_are_not_stated_are_refused(form):
    """An icon's picture is decoded while it is opened, before anybody has seen its size."""
    data = encoded(Image.new("P" if form == "BLP" else "RGB", (16, 16)), format=form)
    assert f"expected one of {', '.join(FORMATS)}" in refused(data)
