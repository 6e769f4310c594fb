"""Whatever the metadata of a file are, its pixels are the same, turned by the EXIF orientation."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image

from textregion.errors import InputError
from textregion.image_files import EXIF, MOST_SCANS, TIFF_TAGS, exif_orientation, without_metadata
from textregion.images import load_image

Entry = tuple[int, int, int, bytes]  # tag, type, count, value: stored in the entry itself where it has 4 bytes
TURNS = {2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM}
TURNS |= {5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE}
TURNS |= {8: Image.Transpose.ROTATE_90}
PICTURE = Image.fromarray(np.random.default_rng(5).integers(0, 256, (5, 8, 3), dtype=np.uint8))
ODD = [
    (0x9203, 10, 1, struct.pack(">ll", -1, 0)),
    (0x11A, 2, 3, b"72\0"),
    (0x11A, 7, 2, b"72"),
    (0x128, 5, 1, struct.pack(">LL", 2, 1)),
    (0x213, 11, 1, struct.pack(">f", 1.0)),
    (0x10E, 2, 2**31, b"\xff\xff\xff\xf0"),
    (0x8769, 4, 1, b"\xff\xff\xff\xff"),
    (0x8769, 2, 1, b"0\0"),
    (0x8825, 4, 1, struct.pack(">L", 8)),
    (0xA005, 4, 1, struct.pack(">L", 8)),
    (0x11C, 3, 0, b""),
    (0x2BC, 2, 4, b"abc\0"),
]


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    image = Image.fromarray(pixels)
    return np.asarray(image.transpose(TURNS[orientation]) if orientation in TURNS else image)


def directory(entries: list[Entry], place: int, order: str) -> bytes:
    """A directory that begins at a place of its block, with the values that its entries have no room for behind it."""
    head, values, end = struct.pack(order + "H", len(entries)), b"", place + 2 + 12 * len(entries) + 4
    for tag, kind, count, value in entries:
        if len(value) > 4:
            value, values = struct.pack(order + "L", end + len(values)), values + value
        head += struct.pack(order + "HHL", tag, kind, count) + value.ljust(4, b"\0")
    return head + bytes(4) + values


def header(order: str, place: int = 8) -> bytes:
    return (b"MM" if order == ">" else b"II") + struct.pack(order + "HL", 42, place)


def block(order: str, orientation: int, first: list[Entry], exif: list[Entry], gps: list[Entry]) -> bytes:
    """An EXIF block with three directories, the first of which has the orientation."""
    entries = sorted([*first, (274, 3, 1, struct.pack(order + "H", orientation))])
    pointers = [(0x8769, 4, 1, bytes(4)), (0x8825, 4, 1, bytes(4))]
    size = len(directory([*entries, *pointers], 8, order))
    second = directory(exif, 8 + size, order)
    places = 8 + size, 8 + size + len(second)
    pointers = [(tag, 4, 1, struct.pack(order + "L", at)) for tag, at in zip((0x8769, 0x8825), places, strict=True)]
    return header(order) + directory([*entries, *pointers], 8, order) + second + directory(gps, places[1], order)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))


def encoded(form: str, **options) -> bytes:
    buffer = io.BytesIO()
    PICTURE.save(buffer, form, **options)
    return buffer.getvalue()


def jpeg(*segments: bytes) -> bytes:
    data = encoded("JPEG")
    parts = [bytes([0xFF, segment[0]]) + struct.pack(">H", len(segment) + 1) + segment[1:] for segment in segments]
    return data[:2] + b"".join(parts) + data[2:]


def png(*chunks: tuple[bytes, bytes], behind: bytes = b"") -> bytes:
    data = encoded("PNG")
    return data[:33] + b"".join(chunk(*each) for each in chunks) + data[33:-12] + behind + data[-12:]


def tiff(order: str, more: list[Entry]) -> bytes:
    """A picture without compression, with more entries in its directory."""
    pixels, (width, height) = PICTURE.tobytes(), PICTURE.size
    numbers = {256: width, 257: height, 259: 1, 262: 2, 273: 8, 277: 3, 278: height, 279: len(pixels)}
    entries = [(tag, 4, 1, struct.pack(order + "L", value)) for tag, value in numbers.items()]
    entries += [(258, 3, 3, struct.pack(order + "3H", 8, 8, 8)), *more]
    place = 8 + len(pixels)
    return header(order, place) + pixels + directory(sorted(entries, key=lambda entry: entry[0]), place, order)


tags = st.integers(0, 65535).filter(lambda tag: tag != 274)
entries = st.lists(
    st.one_of(
        st.sampled_from(ODD),
        st.tuples(tags, st.integers(0, 20), st.integers(0, 2**32 - 1), st.binary(min_size=4, max_size=4)),
        st.tuples(tags, st.integers(1, 13), st.integers(0, 9), st.binary(max_size=40)),
    ),
    max_size=6,
)
orders = st.sampled_from("<>")
orientations = st.one_of(st.integers(1, 8), st.sampled_from([0, 9, 255, 256, 65535]))


@given(orders, orientations, entries, entries, entries)
@example(">", 6, ODD, ODD, ODD)
@example("<", 8, [], ODD, [])
def test_whatever_is_in_an_exif_block_the_picture_is_turned(order, orientation, first, exif, gps):
    content = block(order, orientation, first, exif, gps)
    files = {
        "JPEG": jpeg(b"\xe1" + EXIF + content),
        "PNG": png((b"eXIf", content)),
        "WEBP": encoded("WEBP", lossless=True, exif=content),
    }
    for form, data in files.items():
        expected = turned(load_image(encoded(form, **{"lossless": True} if form == "WEBP" else {})), orientation)
        np.testing.assert_array_equal(load_image(data), expected)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow reads more of it, when a user opens the file
            opened = Image.open(io.BytesIO(data))
        np.testing.assert_array_equal(load_image(opened), expected)


@given(orders, orientations, entries)
@example(">", 6, ODD)
@example("<", 5, ODD)
def test_whatever_is_in_a_tiff_the_picture_is_turned(order, orientation, more):
    more = [entry for entry in more if entry[0] not in TIFF_TAGS]
    data = tiff(order, [*more, (274, 3, 1, struct.pack(order + "H", orientation))])
    expected = turned(np.asarray(PICTURE), orientation)
    np.testing.assert_array_equal(load_image(data), expected)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = Image.open(io.BytesIO(data))
    except (Image.UnidentifiedImageError, OSError, ValueError, ZeroDivisionError, AttributeError):
        return  # the user sees Pillow fail
    before = opened.size
    np.testing.assert_array_equal(load_image(opened), expected)
    assert opened.size == before  # the user's own image is left as it was


def test_a_pil_image_of_a_tiff_that_pillow_could_not_decode():
    for orientation in range(1, 9):
        odd = [(0x128, 5, 1, struct.pack(">LL", 2, 1)), (0x11A, 2, 3, b"72\0"), (305, 4, 2, bytes(8))]
        data = tiff(">", [*odd, (274, 3, 1, struct.pack(">H", orientation))])
        np.testing.assert_array_equal(
            load_image(Image.open(io.BytesIO(data))), turned(np.asarray(PICTURE), orientation)
        )


def test_another_page_of_a_tiff_that_the_user_opened():
    buffer, other = io.BytesIO(), PICTURE.transpose(Image.Transpose.ROTATE_180)
    PICTURE.save(buffer, "TIFF", save_all=True, append_images=[other])
    opened = Image.open(buffer)
    opened.seek(1)
    np.testing.assert_array_equal(load_image(opened), np.asarray(other))
    np.testing.assert_array_equal(load_image(buffer), np.asarray(PICTURE))
    opened.load()
    np.testing.assert_array_equal(load_image(opened), np.asarray(other))


def test_bigtiff_and_every_compression():
    for big in (False, True):
        for compression in (None, "tiff_lzw", "tiff_adobe_deflate", "packbits"):
            data = encoded("TIFF", compression=compression, big_tiff=big, dpi=(72, 72), description="a picture")
            np.testing.assert_array_equal(load_image(data), np.asarray(PICTURE))


@pytest.mark.parametrize(
    ("kind", "count", "value", "expected"),
    [
        (3, 1, b"\6\0", 6),
        (4, 1, b"\6\0\0\0", 6),
        (1, 1, b"\6", 6),
        (3, 2, b"\6\0\1\0", 6),
        (3, 3, b"\6\0\0\0", 1),  # the place of three numbers, not a number
        (3, 0, b"\6\0", 1),
        (2, 2, b"6\0", 1),
        (99, 1, b"\6\0", 1),
        (3, 1, b"\0\0", 1),
        (3, 1, b"\x09\0", 1),
        (4, 1, b"\6\0\1\0", 1),
    ],
)
def test_the_orientation_is_a_whole_number_of_its_entry(kind, count, value, expected):
    content = header("<") + directory([(274, kind, count, value)], 8, "<")
    assert exif_orientation(content) == expected
    assert exif_orientation(EXIF + content) == expected
    assert exif_orientation(EXIF + EXIF + content) == expected


@given(
    st.binary(max_size=60), st.sampled_from([b"", b"II*\0", b"MM\0*", EXIF + b"II*\0\x08\0\0\0", b"II+\0\x08\0\0\0"])
)
def test_an_exif_block_of_any_bytes_is_no_error(content, start):
    assert 1 <= exif_orientation(start + content) <= 8


def test_what_is_no_block_states_nothing():
    assert [exif_orientation(what) for what in (None, "text", 6, b"", EXIF, b"II*\0\xff\xff\xff\xff")] == [1] * 6


@given(st.lists(st.tuples(st.sampled_from([*range(0xE0, 0xF0), 0xFE]), st.binary(max_size=30)), max_size=5))
@example([(0xE0, b"JFIF"), (0xEE, b"Adobe"), (0xE2, b"MPF\0II"), (0xE2, b"ICC_PROFILE\0"), (0xED, b"Photoshop 3.0\0")])
@example([(0xE2, b"MPF\0MM\0*\0\0\0\x08\0\0"), (0xE2, b"ICC_PROFILE\0\1\1" + bytes(9)), (0xE1, EXIF + b"II*\0")])
@example([(0xE1, EXIF + bytes(20)), (0xE1, EXIF + header("<") + directory([(274, 3, 1, b"\6\0")], 8, "<"))])
def test_no_segment_of_a_jpeg_decides(segments):
    data = jpeg(*(bytes([marker]) + content for marker, content in segments))
    np.testing.assert_array_equal(load_image(data), load_image(encoded("JPEG")))


def test_what_tells_the_colours_of_a_jpeg_stays():
    """Adobe's segment says that three channels are RGB already, and that four are inverted CMYK."""
    for mode in ("CMYK", "L", "RGB"):
        image, buffer = PICTURE.convert(mode), io.BytesIO()
        image.save(buffer, "JPEG", quality=95, keep_rgb=mode == "RGB")
        with Image.open(buffer) as opened:
            np.testing.assert_array_equal(load_image(buffer.getvalue()), np.asarray(opened.convert("RGB")))


def test_the_first_picture_of_several_in_a_jpeg():
    buffer = io.BytesIO()
    PICTURE.save(buffer, "MPO", save_all=True, append_images=[PICTURE.transpose(Image.Transpose.ROTATE_180)])
    np.testing.assert_array_equal(load_image(buffer), load_image(encoded("JPEG")))
    np.testing.assert_array_equal(load_image(Image.open(buffer)), load_image(encoded("JPEG")))


def progressive(refinements: int) -> bytes:
    """A grey JPEG of 8 x 8 pixels: their mean in one scan, then scans of ten bytes that refine it."""
    tables = b"\xff\xdb\0\x43\0" + b"\1" * 64 + b"\xff\xc4\0\x14\0\1" + bytes(16)
    frame = b"\xff\xc2\0\x0b\x08" + struct.pack(">HH", 8, 8) + b"\1\1\x11\0"
    scan = b"\xff\xda\0\x08\1\1\0\0\0"
    return b"\xff\xd8" + tables + frame + scan + b"\1\0" + (scan + b"\x10\xff\0") * refinements + b"\xff\xd9"


def test_a_jpeg_of_very_many_scans_is_refused():
    """Each takes 10 to 70 ms of a large picture, for a few bytes."""
    assert load_image(progressive(MOST_SCANS - 1)).shape == (8, 8, 3)
    for behind in (b"", b"\xff\xd9" + progressive(3)):
        with pytest.raises(InputError, match="61 scans, more than the limit of 60"):
            load_image(progressive(MOST_SCANS) + behind)


def test_what_lies_between_and_behind_the_scans_of_a_jpeg_does_not_decide():
    plain = encoded("JPEG", progressive=True)
    second, end = plain.index(b"\xff\xda", plain.index(b"\xff\xda") + 2), len(plain) - 2
    comment = b"\xff\xfe\0\x06\xff\xda\xff\xd9"
    for place in (second, end):
        data = plain[:place] + comment * 99 + plain[place:] + plain + bytes(99)
        assert without_metadata(data, "JPEG") == (without_metadata(plain, "JPEG")[0], 1)
        np.testing.assert_array_equal(load_image(data), load_image(plain))
    buffer = io.BytesIO()
    PICTURE.resize((90, 70)).save(buffer, "JPEG", restart_marker_blocks=2)
    data = buffer.getvalue()
    assert b"\xff\xd0" in data
    assert b"\xff\0" in data
    assert without_metadata(data, "JPEG") == (data, 1)


ancillary = st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"pHYs", b"acTL", b"fcTL"])


@given(st.lists(st.tuples(ancillary, st.binary(max_size=30)), max_size=5), st.binary(max_size=20))
@example([(b"zTXt", b"a\0\0" + zlib.compress(bytes(2_000_000)))], b"")
@example([(b"sRGB", b""), (b"pHYs", b"1"), (b"acTL", b""), (b"fcTL", bytes(26)), (b"gAMA", b""), (b"cHRM", b"1")], b"")
def test_no_other_chunk_of_a_png_decides(chunks, rest):
    wrong = struct.pack(">L", len(rest)) + b"tEXt" + rest + b"sum?"
    for data in (png(*chunks), png(behind=b"".join(chunk(*each) for each in chunks)), png(behind=wrong)):
        np.testing.assert_array_equal(load_image(data), np.asarray(PICTURE))


def test_comments_of_a_gif_are_left_out_and_its_transparency_stays():
    buffer = io.BytesIO()
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(buffer, "GIF", transparency=1)
    data = buffer.getvalue()
    place = 13 + (3 << (data[10] & 7) + 1)
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * 4000 + b"\0"
    odd = b"!\xf9\1\1\0" + b"!\xff\3abc\0" + b"!\1\0"
    for more in (b"", comment, odd, b"\7\7"):
        assert load_image(data[:place] + more + data[place:]).tolist() == [[[10, 20, 30], [255, 255, 255]]]
    assert len(without_metadata(data[:place] + comment + data[place:], "GIF")[0]) <= len(data)


def test_a_directory_that_asks_for_more_than_the_file_is_refused():
    """Each entry points at the whole file: the decoder would read it anew for every one."""
    size = len(PICTURE.tobytes())
    data = tiff("<", [(tag, 7, size, struct.pack("<L", 8)) for tag in (347, 532, 292)])
    with pytest.raises(InputError, match="asks for more bytes than the file has"):
        load_image(data)


@given(st.sampled_from(["PNG", "JPEG", "GIF", "TIFF"]), st.binary(max_size=300))
def test_damage_is_left_for_the_decoder_to_find(form, content):
    starts = {"PNG": b"\x89PNG\r\n\x1a\n", "JPEG": b"\xff\xd8\xff", "GIF": b"GIF89a", "TIFF": b"II*\0"}
    with pytest.raises(InputError):
        load_image(starts[form] + content)
