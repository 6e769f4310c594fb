"""From whatever a user has to (H, W, 3) uint8 RGB, and the keep-ratio resize (method 1)."""

import io
from os.path import isfile
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from textregion.errors import InputError

MAX_PIXELS = 100_000_000
DRAWINGS = ("EPS", "WMF")  # Pillow would start another program to draw these
ImageInput = str | Path | bytes | bytearray | Image.Image | np.ndarray


def load_image(image: ImageInput, max_pixels: int = MAX_PIXELS) -> UInt8[np.ndarray, "H W 3"]:
    """Any image as RGB bytes, upright (EXIF applied), transparency over white, first frame of an animation.

    image: path, encoded bytes, PIL image, (H, W, 3) RGB, (H, W) grey or (H, W, 4) RGBA uint8 array.
    max_pixels: larger images are refused before they are decoded.
    Raises InputError naming what was got and what is expected.
    """
    if isinstance(image, np.ndarray):
        return _from_array(image, max_pixels)
    if isinstance(image, Image.Image):
        return _from_pil(image, "the given image", max_pixels)
    if isinstance(image, (bytes, bytearray)):
        return _decode(io.BytesIO(image), "the given bytes", max_pixels)
    if not isinstance(image, (str, Path)):
        raise InputError(f"got an image of type {type(image).__name__}, expected a path, bytes, PIL image or array")
    path = Path(image)
    if not isfile(path):  # unlike Path.is_file, False for a name that is too long
        raise InputError(f"no image file at {path}; give the path of a PNG, JPEG, WebP, … file")
    return _decode(path, str(path), max_pixels)


def _decode(source: Path | io.BytesIO, name: str, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # our own limit gives the clearer message
    try:
        with Image.open(source) as opened:
            if opened.format in DRAWINGS:
                raise InputError(f"{name} is a drawing ({opened.format}), expected pixels; export it as PNG")
            return _from_pil(opened, name, max_pixels)
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image that can be read; expected PNG, JPEG, WebP, …") from error
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"{name} is damaged or truncated ({error}); save or download it again") from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _from_pil(image: Image.Image, name: str, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    _check_size(image.height, image.width, name, max_pixels)
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # otherwise it would only be copied
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        values = np.asarray(image, dtype=np.float32)
        scale = 255.0 if image.mode == "F" and values.max(initial=0) <= 1 else 255.0 / 65535.0
        return _from_array((values * scale).clip(0, 255).round().astype(np.uint8), max_pixels)
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def _from_array(image: np.ndarray, max_pixels: int) -> UInt8[np.ndarray, "H W 3"]:
    if image.dtype != np.uint8 or not (image.ndim == 2 or (image.ndim == 3 and image.shape[2] in (1, 3, 4))):
        found = f"shape {image.shape} and dtype {image.dtype}"
        raise InputError(f"got an image array of {found}, expected (H, W, 3) uint8 RGB")
    _check_size(*image.shape[:2], "the given array", max_pixels)
    if image.ndim == 2 or image.shape[2] == 1:
        return np.repeat(image.reshape(*image.shape[:2], 1), 3, axis=2)
    if image.shape[2] == 4:
        return _from_pil(Image.fromarray(image), "the given array", max_pixels)
    return np.ascontiguousarray(image)


def _check_size(height: int, width: int, name: str, max_pixels: int) -> None:
    if min(height, width) < 1:
        raise InputError(f"{name} has {width} x {height} pixels, expected at least 1 x 1")
    if height * width > max_pixels:
        limit = f"the limit of {max_pixels / 1e6:g} million"
        raise InputError(f"{name} has {width} x {height} pixels, more than {limit}; shrink it first")


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
