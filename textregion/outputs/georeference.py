"""Where on earth the pixels of a GeoTIFF lie. rasterio (extra `geo`) is imported for such files only."""

import struct
from dataclasses import dataclass
from pathlib import Path

from textregion.errors import InputError, first_line, needs
from textregion.image_files import has_tiff_tag
from textregion.images import format_and_orientation

GEO_TAGS = {33922, 34264, 34735}  # tie points, the transformation, the keys of the coordinate system


@dataclass(frozen=True)
class Georeference:
    """transform: (a, b, c, d, e, f), X = a x + b y + c and Y = d x + e y + f at the pixel's corner (x, y).

    crs: the coordinate system, as EPSG:32633 where it has a number, else as WKT; "" where the file names none.
    """

    transform: tuple[float, float, float, float, float, float]
    crs: str


def georeference(path: Path) -> Georeference | None:
    """Of a GeoTIFF, as the file itself says; None of every other image, and where only control points are given.

    Files beside it (.tfw, .aux.xml) are not read. InputError: rasterio is missing or cannot read the file, or the file
    is to be turned by its orientation tag as well.
    """
    form, orientation = format_and_orientation(path)
    try:
        if form != "TIFF" or not has_tiff_tag(path.read_bytes(), GEO_TAGS):
            return None
    except struct.error as error:
        raise InputError(f"{path} is a damaged TIFF ({error}); save it again") from error
    if orientation != 1:
        raise InputError(f"{path} is a GeoTIFF with an orientation tag of {orientation}; save it upright, without one")
    with needs("a GeoTIFF's coordinates (--export geojson)", layer="geo", extra="geo"):
        import rasterio
        from rasterio.errors import CRSError, RasterioError
    try:
        alone = rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_GEOREF_SOURCES="INTERNAL")
        with alone, rasterio.open(path, driver="GTiff") as file:
            transform, crs = file.transform, file.crs
            name = "" if crs is None else crs.to_string()
    except (RasterioError, CRSError, ValueError) as error:  # ValueError: names that are no text
        raise InputError(f"the coordinates of {path} cannot be read ({first_line(error)}); save it again") from error
    return None if transform.is_identity else Georeference(tuple(map(float, transform[:6])), name)
