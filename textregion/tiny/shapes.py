"""Outlines and anti-aliased masks of the ten object shapes."""

import math
from collections.abc import Callable

import cv2
import numpy as np

SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "ring", "moon", "hexagon", "arrow")

SUBPIXEL_BITS = 4  # fillPoly takes fixed-point coordinates
RING_HOLE = 0.55
MOON_BITE, MOON_SHIFT = 0.85, 0.45


def _polar(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


def _circle() -> np.ndarray:
    return _polar(np.linspace(0, 2 * math.pi, 60, endpoint=False))


def _star() -> np.ndarray:
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    angle = np.arange(10) * math.pi / 5
    return np.stack([radius * np.sin(angle), -radius * np.cos(angle)], axis=1)


def _heart() -> np.ndarray:
    angle = np.linspace(0, 2 * math.pi, 60)
    x = 16 * np.sin(angle) ** 3
    y = -(13 * np.cos(angle) - 5 * np.cos(2 * angle) - 2 * np.cos(3 * angle) - np.cos(4 * angle))
    return np.stack([x / 17, (y + 2) / 17], axis=1)


def _cross() -> np.ndarray:
    arm = 0.33
    quarter = np.array([(arm, -1), (arm, -arm), (1, -arm)])
    turn = np.array([(0.0, 1.0), (-1.0, 0.0)])  # a quarter turn of row vectors
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _points(*points: tuple[float, float]) -> Callable[[], np.ndarray]:
    return lambda: np.array(points)


_OUTLINES: dict[str, Callable[[], np.ndarray]] = {
    "circle": _circle,
    "square": _points((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": _points((0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)),
    "star": _star,
    "heart": _heart,
    "cross": _cross,
    "ring": _circle,
    "moon": _circle,
    "hexagon": lambda: _polar(np.arange(6) * math.pi / 3),
    "arrow": _points((-1.0, -0.3), (0.1, -0.3), (0.1, -0.8), (1.0, 0.0), (0.1, 0.8), (0.1, 0.3), (-1.0, 0.3)),
}


def outline(shape: str) -> np.ndarray:
    """Outer outline of a shape around the origin: (N, 2) float64 points (x, y) within about [-1, 1]."""
    return _OUTLINES[shape]()


def _to_pixels(
    points: np.ndarray, centre: tuple[float, float], radius: float, angle: float, aspect: float
) -> np.ndarray:
    """Stretches, turns, scales and shifts (N, 2) points; gives fixed-point int32 pixel coordinates."""
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = np.array([(cos, sin), (-sin, cos)])
    pixels = points * (aspect, 1 / aspect) @ rotation * radius + centre
    return np.round(pixels * 2**SUBPIXEL_BITS).astype(np.int32)


def shape_alpha(
    shape: str, centre: tuple[float, float], radius: float, angle: float, size: int, aspect: float = 1.0
) -> np.ndarray:
    """Draws one of SHAPES with smooth edges: (size, size) uint8, 0 outside to 255 inside.

    centre: (x, y) in pixels; may lie near or past the border. radius: in pixels. angle: clockwise, in radians.
    aspect: stretch along the shape's own x axis (and shrink along y).
    """
    alpha = np.zeros((size, size), np.uint8)

    def fill(points: np.ndarray, value: int) -> None:
        polygon = _to_pixels(points, centre, radius, angle, aspect)
        cv2.fillPoly(alpha, [polygon], value, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)

    fill(outline(shape), 255)
    if shape == "ring":
        fill(_circle() * RING_HOLE, 0)
    if shape == "moon":
        fill(_circle() * MOON_BITE + (MOON_SHIFT, 0), 0)
    return alpha
