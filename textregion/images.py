"""From whatever a user has to (H, W, 3) uint8 RGB, and the keep-ratio resize (method 1)."""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from os.path import isfile
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image, TiffImagePlugin

from textregion.errors import InputError, first_line
from textregion.image_files import FORMATS, MAX_PIXELS, MAX_SIDE, exif_orientation, without_metadata

SLOW_PIXELS = 4_000_000  # of what Pillow decodes in Python, at up to 2 s a million pixels
BYTES_PER_PIXEL, SPARE_BYTES = 16, 2**26  # of a file: more than pixels without compression and their metadata take


@runtime_checkable
class Readable(Protocol):
    """A file that is open in binary mode, or what reads like one."""

    def read(self, size: int, /) -> Any:
        """At most `size` bytes."""
        ...


Encoded = str | os.PathLike | bytes | bytearray | memoryview | Readable
ImageInput = Encoded | Image.Image | np.ndarray

# What Pillow, its plug-ins and the libraries below raise at a file that they cannot decode
DECODER_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, SyntaxError, LookupError, ArithmeticError, AttributeError),
    *(AssertionError, RuntimeError, BufferError, struct.error, zlib.error, Image.DecompressionBombError),
    Warning,  # where the user has made errors of them
)
UPRIGHT = {  # by EXIF orientation
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
}


def load_image(image: ImageInput, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """Any image as RGB bytes, upright (EXIF orientation), transparency over white, first frame of an animation.

    image: path, encoded bytes or binary file of one of FORMATS; PIL image (of an animation, the frame it stands at);
        (H, W, 3) RGB, (H, W) or (H, W, 1) grey, (H, W, 4) RGBA uint8 array.
    max_pixels: larger images are refused before they are decoded; Pillow's own limit is neither asked nor changed.

    Of metadata only the EXIF orientation is read. What the modes of PIL images and files mean:

    | mode | meaning |
    |---|---|
    | RGB, RGBX, P, CMYK, YCbCr, HSV, LAB | as Pillow converts them to RGB, 8 bits; colour profiles are not applied |
    | 1, L | grey |
    | LA, La, PA, RGBA, RGBa; a transparent colour or palette | over white (La and RGBa: alpha multiplied in already) |
    | I;16, I;16L, I;16B, I;16N | grey, 65535 is white (of a TIFF of 12 bits: 4095) |
    | I | grey; of a PNG or PGM file 65535 is white, else 255 if no value is larger, else 65535; others are refused |
    | F | grey; 1 is white; whole numbers of which some are larger: as in I; others, NaN and infinity are refused |

    A TIFF of signed bytes is refused. 16 bits in several channels are cut to 8 by Pillow, which does not find the
    transparent colour of a PNG then (nor in grey of 2 or 4 bits): such a picture is opaque.
    Raises InputError naming the image, what was got and what is expected, also for whatever a decoder raises.
    """
    if isinstance(image, np.ndarray):
        return _from_array(np.asarray(image), max_pixels)
    if isinstance(image, Image.Image):
        return _from_pil(image, "the given image", max_pixels)
    opened, orientation, name = _decode(*_read(image, max_pixels), max_pixels)
    return _upright(_to_rgb(opened, name), orientation)


def open_image(image: Encoded, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """A file's first picture, decoded as `load_image` does it, but in its own mode and not turned, as label maps are.

    Raises InputError as `load_image`.
    """
    return _decode(*_read(image, max_pixels), max_pixels)[0]


def format_and_orientation(image: Encoded) -> tuple[str | None, int]:
    """(Pillow's name of a file's format, EXIF orientation 1..8, 1 is upright), its pixels not decoded.

    InputError as of `load_image`, but for damage that only decoding finds.
    """
    data, name = _read(image, MAX_PIXELS)
    with decoding(name):
        opened, orientation = _open(data, name, MAX_PIXELS, None)
    return opened.format, orientation


@contextmanager
def decoding(name: str) -> Iterator[None]:
    """InputError naming the image for whatever a decoder raises in the body."""
    try:
        yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{name} needs more memory than there is; shrink it first") from error
    except DECODER_ERRORS as error:
        why = first_line(error)
        raise InputError(f"{name} is damaged or truncated ({why}); save or download it again") from error


def _read(image: Encoded, max_pixels: int) -> tuple[bytes, str]:
    """The content of a file and what to call it; InputError when it cannot be read or is too long for an image."""
    most = BYTES_PER_PIXEL * max_pixels + SPARE_BYTES
    if isinstance(image, (bytes, bytearray, memoryview)):
        data, name = bytes(image), "the given bytes"
    elif isinstance(image, (str, os.PathLike)):
        name = os.fsdecode(image)
        if not isfile(name):  # unlike Path.is_file, False for a name that is too long
            raise InputError(f"no image file at {name}; give the path of a PNG, JPEG, WebP, … file")
        try:
            with Path(name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                data = file.read(min(size, most) + 1)  # asks for so much memory at once
        except OSError as error:
            raise InputError(f"cannot read {name} ({error.strerror or error})") from error
    elif isinstance(image, Readable):
        name = "the given file"
        with decoding(name):
            with suppress(io.UnsupportedOperation):  # a stream is read from where it is
                if hasattr(image, "seek"):
                    image.seek(0)
            data = image.read(most + 1)
        if not isinstance(data, bytes):
            raise InputError(f"{name} gives {type(data).__name__}, expected bytes; open it with mode 'rb'")
    else:
        raise InputError(f"got an image of type {type(image).__name__}, expected a path, bytes, PIL image or array")
    if len(data) > most:
        limit = f"{max_pixels / 1e6:g} million pixels"
        raise InputError(
            f"{name} has more than {most / 1e6:.0f} MB, more than an image within the limit of {limit} takes"
        )
    return data, name


def _decode(data: bytes, name: str, max_pixels: int, directory: int | None = None) -> tuple[Image.Image, int, str]:
    """(decoded image, EXIF orientation, name). directory: of a TIFF, the place of another page's than the first."""
    with decoding(name):
        image, orientation = _open(data, name, max_pixels, directory)
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            image.im = Image.new(image.mode, image.size).im  # otherwise Pillow asks its own limit as well
        image.load()
        return image, orientation, name


def _open(data: bytes, name: str, max_pixels: int, directory: int | None) -> tuple[Any, int]:
    """(image of a size within the limit, not decoded, EXIF orientation); the body of `decoding`.

    Pillow's decoders are called directly: `Image.open` warns and refuses by a limit of the whole process. None of
    FORMATS decodes before its size can be checked.
    """
    form, open_file = _find_decoder(data, name)
    content, orientation = without_metadata(data, form, directory)
    image = open_file(io.BytesIO(content), "")
    _check_size(image.height, image.width, name, max_pixels)
    if image.height * image.width > SLOW_PIXELS and any(part[0] in Image.DECODERS for part in image.tile):
        found, limit = f"{image.width} x {image.height} pixels", f"{SLOW_PIXELS / 1e6:g} million"
        raise InputError(f"{name} has {found}, more than the limit of {limit} of its kind of {form}; save it as PNG")
    if form == "TIFF":
        tags = image.tag_v2
        if TiffImagePlugin.TILEWIDTH in tags and TiffImagePlugin.TILELENGTH in tags:
            tile = int(tags[TiffImagePlugin.TILELENGTH]), int(tags[TiffImagePlugin.TILEWIDTH])
            _check_size(*tile, f"a tile of {name}", max_pixels)
    return image, orientation or exif_orientation(image.info.get("exif"))


def _find_decoder(data: bytes, name: str) -> tuple[str, Any]:
    """(name of the format, function that opens it) by the first bytes; InputError when it is none of FORMATS."""
    Image.init()
    for form in FORMATS:
        open_file, accepts = Image.OPEN.get(form, (None, None))
        answer = accepts(data[:16]) if accepts else False
        if isinstance(answer, str):
            raise InputError(f"{name} cannot be decoded here ({answer})")
        if answer:
            return form, open_file
    raise InputError(f"{name} is not an image that can be read; expected one of {', '.join(FORMATS)}; save it as PNG")


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    _check_size(image.height, image.width, name, max_pixels)
    if isinstance(image, TiffImagePlugin.TiffImageFile) and image.tile and image.fp:
        # Not decoded yet, and Pillow would rewrite its EXIF on the way
        with decoding(name):
            place = image.fp.tell()
        data, _ = _read(image.fp, max_pixels)
        image.fp.seek(place)
        opened, orientation, _ = _decode(data, name, max_pixels, image.tag_v2.offset)
        return _upright(_to_rgb(opened, name), orientation)
    with decoding(name):
        image.load()
    return _upright(_to_rgb(image, name), exif_orientation(image.info.get("exif")))


def _to_rgb(image: Image.Image, name: str) -> UInt8[np.ndarray, "H W 3"]:
    """A decoded image by the table of `load_image`."""
    with decoding(name):
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            return np.repeat(_deep_grey(image, name)[..., None], 3, axis=2)
        if image.mode == "L" and 2 in _tags(image).get(TiffImagePlugin.SAMPLEFORMAT, ()):
            raise InputError(f"{name} has signed bytes, expected unsigned ones; save it as an 8-bit PNG")
        if image.mode == "La":
            image = image.convert("LA")
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _deep_grey(image: Image.Image, name: str) -> UInt8[np.ndarray, "H W"]:
    """Grey of more than 8 bits scaled to 8; InputError when there is no saying which value is white."""
    values, tags = np.asarray(image), _tags(image)
    lowest, highest = float(values.min()), float(values.max())
    if image.mode.startswith("I;16"):
        whites = (4095,) if tags.get(TiffImagePlugin.BITSPERSAMPLE) == (12,) else (65535,)
    elif image.mode == "I" and image.format in ("PNG", "PPM"):
        whites = (65535,)
    elif image.mode == "I":
        whites = (255, 65535)
    else:
        is_whole = bool(np.isfinite(values).all() and (values == np.rint(values)).all())
        whites = (1, 255, 65535) if is_whole else (1,)
    white = next((white for white in whites if lowest >= 0 and highest <= white), None)
    if white is None:
        found = f"values from {lowest:g} to {highest:g} (mode {image.mode})"
        wanted = f"0 to {whites[-1]}" if len(whites) == 1 else f"whole numbers within 0 to {whites[-1]}"
        raise InputError(f"{name} has {found}, expected {wanted}; scale them to 0 to 255 and save 8 bits")
    grey = (values.astype(np.float32) * (255.0 / white)).round().astype(np.uint8)
    if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # Pillow turns only 8 bits over
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[values == transparent] = 255
    return grey


def _tags(image: Image.Image) -> Any:
    """The tags of a TIFF's directory, none for other images."""
    return getattr(image, "tag_v2", {})


def _upright(pixels: UInt8[np.ndarray, "h w 3"], orientation: int) -> UInt8[np.ndarray, "H W 3"]:
    return np.ascontiguousarray(UPRIGHT[orientation](pixels))


def _from_array(image: np.ndarray, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
        found = f"shape {image.shape} and dtype {image.dtype}"
        raise InputError(f"got an image array of {found}, expected (H, W, 3) uint8 RGB")
    _check_size(*image.shape[:2], "the given array", max_pixels)
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.shape[2] == 4:
        return _to_rgb(Image.fromarray(image), "the given array")
    return np.ascontiguousarray(image)


def _check_size(height: int, width: int, name: str, max_pixels: int) -> None:
    if min(height, width) < 1:
        raise InputError(f"{name} has {width} x {height} pixels, expected at least 1 x 1")
    if height * width > max_pixels:
        limit = f"the limit of {max_pixels / 1e6:g} million"
        raise InputError(f"{name} has {width} x {height} pixels, more than {limit}; shrink it first")
    if max(height, width) > MAX_SIDE:
        limit = f"the limit of {MAX_SIDE} on a side"
        raise InputError(f"{name} has {width} x {height} pixels, more than {limit}; cut it into pieces first")


def keep_ratio_size(height: int, width: int, scale: tuple[int, int]) -> tuple[int, int]:
    """(H, W) after fitting inside `scale` with the aspect kept, up or down, at least 1 (method 1.2).

    scale: two sides in pixels, any order; the long side is held under the larger, the short under the smaller one.
    """
    factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
    return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)


def resize_keep_ratio(image: UInt8[np.ndarray, "H W 3"], scale: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Keep-ratio resize of bytes by OpenCV's bilinear without antialias, as mmcv's `imrescale` (method 1.2)."""
    height, width = keep_ratio_size(*image.shape[:2], scale)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
