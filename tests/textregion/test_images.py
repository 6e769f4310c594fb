import io
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from textregion.errors import InputError
from textregion.images import keep_ratio_size, load_image, resize_keep_ratio

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


def test_sixteen_bits_are_scaled_to_eight():
    values = np.array([[0, 257, 32896, 65535]], np.uint16)
    expected = np.stack([np.array([[0, 1, 128, 255]])] * 3, 2)
    np.testing.assert_array_equal(load_image(encoded(Image.fromarray(values))), expected)
    np.testing.assert_array_equal(load_image(encoded(Image.fromarray(values), format="TIFF")), expected)


def test_exif_rotation_is_applied():
    array = picture(3, 5)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    loaded = load_image(encoded(Image.fromarray(array), exif=exif))
    np.testing.assert_array_equal(loaded, np.rot90(array, -1))


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


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF"])
def test_truncated_files(kind, tmp_path):
    data = encoded(Image.fromarray(picture(131, 173)), format=kind)
    assert load_image(data).shape == (131, 173, 3)
    path = tmp_path / f"half.{kind.lower()}"
    path.write_bytes(data[: len(data) // 2])
    for given_ in (path, path.read_bytes()):
        message = refused(given_)
        assert "damaged or truncated" in message or "not an image" in message


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


def test_pillows_own_limit_is_left_as_it_was():
    before = Image.MAX_IMAGE_PIXELS
    load_image(encoded(Image.fromarray(picture())))
    refused(b"nothing")
    assert before == Image.MAX_IMAGE_PIXELS


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
    with pytest.raises(InputError, match=r"is a drawing \(EPS\)"):
        load_image(eps)
