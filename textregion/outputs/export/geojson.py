"""GeoJSON: a FeatureCollection per image, polygons with their holes along the edges of pixels, exactly."""

import numpy as np
from jaxtyping import Float

from textregion.outputs.export.base import Dataset, DatasetImage, Files, LabelledObject, register_exporter
from textregion.outputs.export.outlines import Ring, edge_polygons
from textregion.outputs.folder import json_bytes


@register_exporter("geojson")
def geojson(dataset: Dataset) -> Files:
    """geojson/NAME.geojson for every image.

    Coordinates are those of a georeferenced image's file, named in "crs"; of any other image pixels, x to the right and
    y down, pixel (0, 0) from 0 to 1. RFC 7946 wants longitude and latitude; these are what the image has.
    """
    for image in dataset.images:
        features = [_feature(dataset, image, number, found) for number, found in enumerate(image.objects)]
        content: dict = {"type": "FeatureCollection", "name": image.stem}
        if image.crs:
            content["crs"] = {"type": "name", "properties": {"name": image.crs}}
        yield f"geojson/{image.stem}.geojson", json_bytes({**content, "features": features})


def _feature(dataset: Dataset, image: DatasetImage, number: int, found: LabelledObject) -> dict:
    polygons = [
        [_closed(image, ring, is_hole=i > 0) for i, ring in enumerate(polygon)] for polygon in edge_polygons(found.mask)
    ]
    one = len(polygons) == 1
    shape = {"type": "Polygon" if one else "MultiPolygon", "coordinates": polygons[0] if one else polygons}
    told = {"label": found.label, "label_id": dataset.label_id(found.label), "score": found.score, "area": found.area}
    properties = {**told, "image": image.name, "region": found.region}
    return {"type": "Feature", "id": f"{image.id}_{number}", "properties": properties, "geometry": shape}


def _closed(image: DatasetImage, ring: Ring, is_hole: bool) -> list[list[float]]:
    """The ring in the image's coordinates, the first corner once more at the end: as RFC 7946 has it outer rings
    counterclockwise, holes clockwise, taken as numbers.
    """
    corners: Float[np.ndarray, "_ 2"] | Ring = np.concatenate([ring, ring[:1]])
    if image.transform is not None:
        a, b, c, d, e, f = image.transform
        corners = corners @ np.array([[a, d], [b, e]]) + (c, f)
    x, y = corners[:-1].T, corners[1:].T
    counterclockwise = (x[0] * y[1] - y[0] * x[1]).sum() > 0  # twice the area
    return (corners[::-1] if counterclockwise == is_hole else corners).tolist()
