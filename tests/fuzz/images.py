"""Image files of every kind, whole, damaged, and none at all."""

import io
import os
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tests.fuzz.case import EARLIER, EITHER, FAST, OUTPUT, REFUSED, WORKS, Case
from textregion.image_files import FORMATS
from textregion.images import load_image
from textregion.storage import write_atomically
from textregion.tiny.scenes import draw_scene
from TextRegionSegmenter import TextRegionSegmenter

LABELS = ("--labels", "red shape", "sky")
ORIENTATION = 274  # EXIF tag


def cases(folder: Path, random: np.random.Generator) -> Iterator[Case]:
    """All image cases; their files are written to a folder."""
    picture = Image.fromarray(draw_scene(3, 64).image).resize((61, 47))
    for name, data, expected in [*whole(picture), *damaged(picture, random), *foreign(picture)]:
        path = folder / name
        write_atomically(path, data)
        kind = {WORKS: "image: kinds", REFUSED: "image: unreadable"}.get(expected[0], "image: damaged")
        kind = "image: damaged" if expected == EITHER else kind
        yield photo(kind, path, expected)
        yield Case(kind, f"load_image {name}", None, loading(path), expected)
        yield Case(kind, f"load_image bytes of {name}", None, loading(data), expected)
    yield from orientations(picture)
    yield from names(picture, folder / "names")
    yield from arrays(random)


def photo(kind: str, path: Path | str, expected: tuple[str, ...], output: str = OUTPUT) -> Case:
    """The program on one image."""
    return Case(kind, f"--image {path}", (*FAST, "--image", str(path), *LABELS, "--output", output), None, expected)


def loading(image: object) -> Callable[[TextRegionSegmenter], object]:
    """`load_image`, and that it gives what it promises."""

    def call(segmenter: TextRegionSegmenter) -> None:
        pixels = load_image(image)
        assert pixels.dtype == np.uint8, pixels.dtype
        assert pixels.ndim == 3, pixels.shape
        assert pixels.shape[2] == 3, pixels.shape

    return call


def encoded(image: Image.Image, form: str, **options) -> bytes:
    """An image file in memory."""
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def whole(picture: Image.Image) -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    """(name, content, expected) of files that must be read, and of formats and numbers that have no stated meaning."""
    grey, alpha = picture.convert("L"), picture.convert("RGBA")
    alpha.putalpha(grey)
    palette = picture.quantize(9)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    numbers = Image.fromarray(np.asarray(grey).astype(np.float32) / 255)
    undefined = np.asarray(numbers).copy()
    undefined[3:9, 5:7], undefined[0, 0] = np.nan, np.inf
    frames = [picture, picture.rotate(180), picture.convert("L").convert("RGB")]
    animated = {"save_all": True, "append_images": frames[1:], "duration": 50}
    modes = {"rgb": picture, "grey": grey, "palette": palette, "rgba": alpha, "la": alpha.convert("LA")}
    modes |= {"bits": grey.convert("1"), "grey16": deep}
    yield from ((f"{name}.png", encoded(image, "PNG"), (WORKS,)) for name, image in modes.items())
    yield "transparent_palette.png", encoded(palette, "PNG", transparency=3), (WORKS,)
    yield "transparent_palette_bytes.png", encoded(palette, "PNG", transparency=bytes(range(9))), (WORKS,)
    yield "transparent_rgb.png", encoded(picture, "PNG", transparency=(1, 2, 3)), (WORKS,)
    yield "cmyk.jpg", encoded(picture.convert("CMYK"), "JPEG"), (WORKS,)
    yield "progressive.jpg", encoded(picture, "JPEG", progressive=True), (WORKS,)
    for form in ("BMP", "PPM", "JPEG2000", "WEBP", "GIF", "AVIF", "TGA", "ICO", "PCX", "DDS", "QOI"):
        try:
            yield f"rgb.{form.lower()}", encoded(picture, form), (WORKS if form in FORMATS else REFUSED,)
        except (KeyError, OSError):  # this Pillow cannot write it
            continue
    tiffs = {"grey16": deep, "float": numbers, "lab": Image.merge("LAB", picture.split()), "float_nan": undefined}
    for name, image in tiffs.items():
        image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
        yield f"{name}.tiff", encoded(image, "TIFF"), (REFUSED if name == "float_nan" else WORKS,)
    yield "int32.tiff", encoded(Image.fromarray(np.asarray(grey).astype(np.int32) * 257), "TIFF"), (WORKS,)
    yield "pages.tiff", encoded(picture, "TIFF", save_all=True, append_images=frames[1:]), (WORKS,)
    for form, suffix in (("GIF", "gif"), ("WEBP", "webp"), ("PNG", "apng")):
        yield f"animated.{suffix}", encoded(picture, form, **animated), (WORKS,)
    for width, height in ((1, 1), (1, 2), (2, 1), (1, 5000), (5000, 1), (3, 700)):
        yield f"{width}x{height}.png", encoded(picture.resize((width, height)), "PNG"), (WORKS,)
    for colour in ("black", "white", (0, 255, 0)):
        yield f"flat_{colour}.png", encoded(Image.new("RGB", (40, 30), colour), "PNG"), (WORKS,)


def damaged(picture: Image.Image, random: np.random.Generator) -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    """Whole files cut short at many points, and with some bytes changed: whatever the decoder makes of them."""
    sources = {
        "png": encoded(picture, "PNG"),
        "jpg": encoded(picture, "JPEG"),
        "gif": encoded(picture, "GIF"),
        "webp": encoded(picture, "WEBP"),
        "tiff": encoded(picture, "TIFF", compression="tiff_lzw"),
        "bmp": encoded(picture, "BMP"),
    }
    for suffix, data in sources.items():
        for share in (0.005, 0.02, 0.1, 0.5, 0.9, 0.999):
            length = max(1, int(len(data) * share))
            expected = (REFUSED,) if share <= 0.02 else EITHER
            yield f"cut_{share}.{suffix}", data[:length], expected
        for number in range(4):
            changed = bytearray(data)
            for place in random.integers(8, len(data), 1 + 5 * number):
                changed[place] = random.integers(256)
            yield f"changed_{number}.{suffix}", bytes(changed), EITHER


def foreign(picture: Image.Image) -> Iterator[tuple[str, bytes, tuple[str, ...]]]:
    """Files that are no image, or claim to be an enormous one."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("a.png", encoded(picture, "PNG"))
    files = {
        "empty.png": b"",
        "text.png": b"this is no image\n",
        "page.jpg": b"<!doctype html><html><body>404</body></html>",
        "paper.png": b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n1 0 obj\n",
        "archive.png": archive.getvalue(),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
        "drawing.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n",
        "zeros.png": bytes(4096),
        "noise.jpg": np.random.default_rng(0).bytes(4096),
        "signature.png": b"\x89PNG\r\n\x1a\n",
        "no_pixels.png": png_header(17, 13),
        "no_width.png": png_header(0, 13),
        "bomb.png": png_header(60_000, 60_000),
        "bomb_long.png": png_header(2_000_000_000, 1),
        "bomb.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes([0x80, 0, 0]) + bytes(6) + b",",
        "bomb.bmp": bmp_header(50_000, 50_000),
        "bomb_text.png": png_header(9, 9, chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(50_000_000), 1))),
        "large.png": encoded(Image.new("1", (12_000, 9_000)), "PNG"),
    }
    yield from ((name, data, (REFUSED,)) for name, data in files.items())


def chunk(name: bytes, data: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(width: int, height: int, more: bytes = b"") -> bytes:
    """A PNG that claims a size and has next to no pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def bmp_header(width: int, height: int) -> bytes:
    """A BMP that claims a size and has no pixels."""
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, *[0] * 6)


def orientations(picture: Image.Image) -> Iterator[Case]:
    """All eight EXIF orientations, and values that are none: the same pixels as the upright image."""
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # the transposition that the tag says was done, undone
    for value in (*range(1, 9), 0, 9, 65535):
        exif = Image.Exif()
        exif[ORIENTATION] = value
        inverse = {2: 4, 4: 2}  # of the quarter turns; the others undo themselves
        stored = picture.transpose(inverse.get(undo[value], undo[value])) if value in undo else picture
        data = encoded(stored, "PNG", exif=exif)

        def same(segmenter: TextRegionSegmenter, data: bytes = data) -> None:
            np.testing.assert_array_equal(load_image(data), np.asarray(picture))

        yield Case("image: kinds", f"EXIF orientation {value}", None, same, (WORKS,))


def names(picture: Image.Image, folder: Path) -> Iterator[Case]:
    """Odd names, things that are no files, an image among bad ones; the same into the folder of an earlier run."""
    data = encoded(picture, "PNG")
    for name in ("two words.png", "ünïcødé 犬 🐕.png", "-dash.png", "a" * 200 + ".png", "no_ending", "two.dots.png"):
        write_atomically(folder / name, data) if len(name) < 150 else plain_write(folder / name, data)
        yield photo("image: names", folder / name, (WORKS,))
    for name in ("é\udc80.png", "%s {0} \\.png", "'quoted\".png", "new\nline.png", "con.\x1b[31m.png"):
        try:
            plain_write(folder / name, data)
        except (OSError, UnicodeEncodeError):  # not a name on this file system
            continue
        yield photo("image: names", folder / name, EITHER)
    (folder / "folder.png").mkdir(exist_ok=True)
    link(folder / "dangling.png", folder / "nowhere.png")
    link(folder / "loop.png", folder / "loop.png")
    link(folder / "good_link.png", folder / "two words.png")
    yield photo("image: names", folder / "good_link.png", (WORKS,))
    if not (folder / "pipe.png").exists():
        os.mkfifo(folder / "pipe.png")
    bad = [folder / n for n in ("absent.png", "folder.png", "dangling.png", "loop.png", "pipe.png", "x" * 300, "a/b/c")]
    bad += [folder / "two words.png" / "inside.png", "", ".", "/", "~", "-", "/dev/zero", "/dev/null", "nul\0.png"]
    bad += ["https://example.invalid/a.png", "\ud800.png"]
    if os.geteuid() != 0:
        plain_write(folder / "secret.png", data)
        (folder / "secret.png").chmod(0)
        bad.append(folder / "secret.png")
    for path in bad:
        yield photo("image: no file", path, (REFUSED,))
        yield photo("earlier results", path, (REFUSED,), EARLIER)
        yield Case("image: no file", f"load_image {path!r}", None, loading(path), (REFUSED,))
    good = [str(folder / name) for name in ("two words.png", "no_ending")]
    files = [str(path) for path in bad[:7] if path != folder / "folder.png"]  # a folder without images stops it all
    batch = (*FAST, "--image_list", good[0], *files, good[1], *LABELS, "--output", OUTPUT)
    yield Case("image: batches", "bad images among good ones", batch, None, (REFUSED,), finished=2)
    same = (*FAST, "--image_list", good[0], good[0], good[0], *LABELS, "--output", OUTPUT)
    yield Case("image: batches", "one image three times", same)


def plain_write(path: Path, data: bytes) -> None:
    """Write a file whose name is too odd or long for a temporary neighbour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


def link(path: Path, target: Path) -> None:
    """A symbolic link, made anew."""
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def arrays(random: np.random.Generator) -> Iterator[Case]:
    """What else a caller may hand over as an image."""
    good = random.integers(0, 256, (23, 31, 3), dtype=np.uint8)
    views = {"reversed": good[::-1, ::-1], "transposed": good.transpose(1, 0, 2), "strided": good[::2, ::3]}
    right = {"RGB": good, "grey": good[:, :, 0], "one channel": good[:, :, :1], **views}
    right |= {"RGBA": np.dstack([good, good[:, :, :1]]), "PIL": Image.fromarray(good), "bits": Image.new("1", (9, 7))}
    wrong = {"floats": good / 255, "int64": good.astype(np.int64), "NaN": np.full((9, 9, 3), np.nan)}
    wrong |= {"no height": good[:0], "no width": good[:, :0], "no channel": good[:, :, :0], "line": good[0, :, 0]}
    wrong |= {"2 channels": good[:, :, :2], "5 channels": np.dstack([good] * 2)[:, :, :5], "batch": good[None]}
    wrong |= {"channels first": good.transpose(2, 0, 1), "scalar": np.array(3), "text": np.array([["a"]])}
    wrong |= {"None": None, "number": 7, "list": good.tolist(), "no bytes": b"", "objects": np.array([[None]])}
    wrong |= {"empty PIL": Image.new("RGB", (0, 9)), "bool": np.zeros((4, 4), bool), "set": {1, 2}}
    wrong |= {"enormous view": np.broadcast_to(np.uint8(3), (20_000, 20_000, 3))}
    for expected, given in ((WORKS, right), (REFUSED, wrong)):
        for name, image in given.items():
            yield Case("image: arrays", f"load_image {name}", None, loading(image), (expected,))
            encode = lambda segmenter, image=image: segmenter.encode_image(image)  # noqa: E731
            yield Case("image: arrays", f"encode_image {name}", None, encode, (expected,))
