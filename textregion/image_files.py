"""Image files without their metadata, so that nothing but what makes the pixels reaches a decoder, and EXIF's turn.

Decoders read far more than pixels: Pillow parses resolutions, thumbnails, profiles and comments, refuses the picture
over an odd one, and reads each of a hostile file's ten thousand tags. What is left here is what the pixels depend on.
"""

import re
import struct
from collections.abc import Iterator
from struct import pack, unpack_from

# Of each of these the size that is stated in the file bounds what decoding takes. That of AVIF and JPEG 2000 does not:
# the pictures within an AVIF's items have sizes of their own, and a JPEG 2000 of 150 bytes can ask for millions of
# code blocks.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM")
MAX_PIXELS = 100_000_000  # of an image, and of whatever belongs to one
MAX_SIDE = 65_535  # pixels, what a JPEG can have; strips take time and memory that their pixels do not tell
ORIENTATION = 274  # the tag, of EXIF and TIFF alike
EXIF = b"Exif\0\0"
MOST_SCANS = 60  # of a progressive JPEG, each of which visits all its pixels however few bytes it has; 24 are usual
JPEG_MARKER = re.compile(rb"\xff[\xc0-\xcf\xd9-\xfe]")  # of segments and of the end; others have no content
FIELD_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
# Sizes, bits, compression, colours, strips, fax options, predictor, tiles, extra samples, old JPEG, YCbCr, black level
TIFF_TAGS = {256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, *range(322, 326), 332, 338, 339}
TIFF_TAGS |= {347, *range(512, 522), 529, 530, 531, 532}


def exif_orientation(block: object) -> int:
    """The orientation 1..8 that an EXIF block (bytes, with or without its prefix) states; 1 where it states none.

    Nothing else of the block is read, and no error is raised, whatever is in it.
    """
    if not isinstance(block, bytes):
        return 1
    while block.startswith(EXIF):
        block = block[len(EXIF) :]
    try:
        order, place, is_big = _tiff_header(block)
        return _orientation(order, _entries(block, order, place, is_big))
    except struct.error:
        return 1


def has_tiff_tag(data: bytes, tags: set[int]) -> bool:
    """Whether the first page of a TIFF has one of these tags. struct.error: damage in its directory."""
    order, place, is_big = _tiff_header(data)
    return any(tag in tags for tag, *_ in _entries(data, order, place, is_big))


def without_metadata(data: bytes, form: str, directory: int | None = None) -> tuple[bytes, int | None]:
    """(the file with what its first picture's pixels depend on, its EXIF orientation).

    form: one of FORMATS. directory: of a TIFF, the place of another page's. An orientation of None is still to be
    found in the block that Pillow hands out. A damaged file keeps its damage, for the decoder to find.
    struct.error, IndexError, ValueError: damage where the structure of the file is read here.
    """
    if form == "PNG":
        return _png(data)
    if form == "JPEG":
        return _jpeg(data)
    if form == "GIF":
        return _gif(data), 1
    if form == "TIFF":
        return _tiff(data, directory)
    return data, None


def _png(data: bytes) -> tuple[bytes, int]:
    """The critical chunks, whose names begin with a capital letter, and the transparent colour."""
    kept, orientation, place = [data[:8]], None, 8
    while place + 12 <= len(data):
        (length,), name = unpack_from(">L", data, place), data[place + 4 : place + 8]
        end = place + 12 + length
        if end > len(data):
            break
        if name == b"tRNS" or name[:1].isupper():
            kept.append(data[place:end])
        elif name == b"eXIf" and orientation is None:
            orientation = exif_orientation(data[place + 8 : end - 4])
        place = end
        if name == b"IEND":
            return b"".join(kept), orientation or 1
    return b"".join([*kept, data[place:]]), orientation or 1


def _jpeg(data: bytes) -> tuple[bytes, int]:
    """All but the application segments and comments; JFIF's and Adobe's stay, which tell the colours apart.

    ValueError for more than MOST_SCANS scans in what is left, which is all that the decoder sees.
    """
    kept, orientation, place = [data[:2]], None, 2
    while (found := JPEG_MARKER.search(data, place)) and found.end() + 2 <= len(data):
        place, marker = found.start(), data[found.end() - 1]
        (length,) = unpack_from(">H", data, place + 2)
        if marker == 0xD9 or length < 2:
            break
        content, end = data[place + 4 : place + 2 + length], place + 2 + length
        if marker == 0xDA:  # the pixels follow, up to the next marker
            following = JPEG_MARKER.search(data, end)
            end = following.start() if following else len(data)
        is_jfif = marker == 0xE0 and content.startswith(b"JFIF\0") and len(content) >= 14
        is_adobe = marker == 0xEE and content.startswith(b"Adobe") and len(content) >= 12
        if is_jfif or is_adobe or not (0xE0 <= marker <= 0xEF or marker == 0xFE):
            kept.append(data[place:end])
        elif marker == 0xE1 and content.startswith(EXIF) and orientation is None:
            orientation = exif_orientation(content)
        place = end
    kept.append(data[place : place + 2])  # the end, without another picture that may follow
    left = b"".join(kept)
    if (scans := left.count(b"\xff\xda")) > MOST_SCANS:
        raise ValueError(f"{scans} scans, more than the limit of {MOST_SCANS}")
    return left, orientation or 1


def _gif(data: bytes) -> bytes:
    """All but the extensions before the first frame; its transparent colour stays."""
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 128 else 0)
    kept = [data[:place]]
    while place < len(data) and data[place] not in b",;":
        end = place + 1
        if data[place] == 0x21:
            end += 1
            while end < len(data) and data[end]:
                end += data[end] + 1
            end += 1
            if data[place + 1 : place + 3] == b"\xf9\4":
                kept.append(data[place:end])
        place = end
    return b"".join([*kept, data[place:]])


def _tiff(data: bytes, directory: int | None) -> tuple[bytes, int]:
    """One page, whose directory has only TIFF_TAGS, each once; their values stay where they are."""
    order, first, is_big = _tiff_header(data)
    place = first if directory is None else directory
    entries = list(_entries(data, order, place, is_big))
    kept = {}
    for tag, kind, count, entry in entries:
        if tag in TIFF_TAGS:
            kept.setdefault(tag, (FIELD_BYTES.get(kind, 0) * count, entry))
    if sum(size for size, _ in kept.values()) > len(data):
        raise IndexError("its directory asks for more bytes than the file has")
    number, offset = ("Q", "Q") if is_big else ("H", "L")
    made = pack(order + number, len(kept)) + b"".join(entry for _, entry in kept.values()) + pack(order + offset, 0)
    head = data[:8] + pack(order + "Q", place) if is_big else data[:4] + pack(order + "L", place)
    if not kept or place < len(head) or place + len(made) > len(data):
        return data, 1  # no directory: the decoder says so
    return head + data[len(head) : place] + made + data[place + len(made) :], _orientation(order, iter(entries))


def _tiff_header(data: bytes) -> tuple[str, int, bool]:
    """(byte order as struct has it, place of the first directory, whether it is a BigTIFF); struct.error: too short."""
    order = ">" if data[:2] == b"MM" else "<"
    is_big = 43 in data[2:4]
    return order, unpack_from(order + "Q", data, 8)[0] if is_big else unpack_from(order + "L", data, 4)[0], is_big


def _entries(data: bytes, order: str, place: int, is_big: bool) -> Iterator[tuple[int, int, int, bytes]]:
    """(tag, type, count, the whole entry) of a directory, as far as the data go; struct.error: no directory there."""
    number, layout, size = ("Q", "HHQ", 20) if is_big else ("H", "HHL", 12)
    if place >= len(data):
        return
    (count,) = unpack_from(order + number, data, place)
    first = place + (8 if is_big else 2)
    for start in range(first, min(first + count * size, len(data) - size + 1), size):
        yield *unpack_from(order + layout, data, start), data[start : start + size]


def _orientation(order: str, entries: Iterator[tuple[int, int, int, bytes]]) -> int:
    """1..8, stated as the first whole number of the first such tag; 1 otherwise."""
    for tag, kind, count, entry in entries:
        if tag == ORIENTATION:
            field, letter = entry[8:] if len(entry) == 12 else entry[12:], {1: "B", 3: "H", 4: "L"}.get(kind)
            if letter is None or not 0 < count * FIELD_BYTES[kind] <= len(field):
                return 1
            (value,) = unpack_from(order + letter, field)
            return value if 1 <= value <= 8 else 1
    return 1
