"""How the tiny world is painted: outlines of the ten object shapes, colours, fills and grounds.

Lengths are given for a canvas of 256 pixels and grow with it. All pictures here are float32 RGB in about
[0, 255], not clipped.
"""

import math

import cv2
import numpy as np

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (205, 35, 35),
    "orange": (240, 135, 25),
    "yellow": (240, 220, 50),
    "green": (40, 160, 65),
    "blue": (45, 75, 210),
    "purple": (135, 55, 180),
    "pink": (245, 145, 190),
    "white": (240, 240, 240),
    "black": (28, 28, 28),
}
TEXTURES = ("plain", "striped", "dotted", "checkered")
GROUNDS = ("grass", "water", "sand", "sky", "brick", "wood", "snow", "stone")

Point = tuple[float, float]  # x, y

REFERENCE_SIZE = 256
SUBPIXEL_BITS = 4  # fillPoly takes fixed-point coordinates


def _polar(angle: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)


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
    quarter = np.array([(0.33, -1), (0.33, -0.33), (1, -0.33)])
    turn = np.array([(0.0, 1.0), (-1.0, 0.0)])  # a quarter turn of row vectors
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


_CIRCLE = _polar(np.linspace(0, 2 * math.pi, 60, endpoint=False))
# Outer outlines around the origin: (N, 2) float64 points (x, y) within about [-1, 1].
OUTLINES: dict[str, np.ndarray] = {
    "circle": _CIRCLE,
    "square": np.array([(-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)]),
    "triangle": np.array([(0.0, -1.0), (0.95, 0.75), (-0.95, 0.75)]),
    "star": _star(),
    "heart": _heart(),
    "cross": _cross(),
    "ring": _CIRCLE,
    "moon": _CIRCLE,
    "hexagon": _polar(np.arange(6) * math.pi / 3),
    "arrow": np.array([(-1, -0.3), (0.1, -0.3), (0.1, -0.8), (1, 0), (0.1, 0.8), (0.1, 0.3), (-1, 0.3)]),
}
_HOLES = {"ring": _CIRCLE * 0.55, "moon": _CIRCLE * 0.85 + (0.45, 0)}
SHAPES = tuple(OUTLINES)


def shape_alpha(shape: str, centre: Point, radius: float, angle: float, size: int, aspect: float = 1.0) -> np.ndarray:
    """Draws one of SHAPES with smooth edges: (size, size) uint8, 0 outside to 255 inside.

    centre: in pixels; may lie near or past the border. radius: in pixels. angle: clockwise, in radians.
    aspect: stretch along the shape's own x axis (and shrink along y).
    """
    alpha = np.zeros((size, size), np.uint8)
    cos, sin = math.cos(angle), math.sin(angle)
    rotation = np.array([(cos, sin), (-sin, cos)])
    for outlines, value in ((OUTLINES, 255), (_HOLES, 0)):
        if shape in outlines:
            pixels = outlines[shape] * (aspect, 1 / aspect) @ rotation * radius + centre
            fixed_point = np.round(pixels * 2**SUBPIXEL_BITS).astype(np.int32)
            cv2.fillPoly(alpha, [fixed_point], value, lineType=cv2.LINE_AA, shift=SUBPIXEL_BITS)
    return alpha


def coordinates(size: int) -> np.ndarray:
    """Row and column of every pixel: (2, size, size) float32, y and x."""
    return np.mgrid[0:size, 0:size].astype(np.float32)


def _noise(rng: np.random.Generator, size: int, cells: float, aspect: float = 1.0) -> np.ndarray:
    """Cloudy noise, `cells` blobs high and `cells * aspect` wide: (size, size) float32 in about [0, 1]."""
    grid = rng.random((max(2, int(cells)), max(2, int(cells * aspect)))).astype(np.float32)
    return cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)


def _grain(rng: np.random.Generator, size: int) -> np.ndarray:
    return rng.random((size, size)).astype(np.float32)


def _blend(amount: np.ndarray, low: tuple[int, int, int], high: tuple[int, int, int]) -> np.ndarray:
    """Mixes two colours by `amount` (size, size): 0 gives `low`, 1 gives `high`."""
    low_colour, high_colour = np.array([low, high], np.float32)
    return low_colour + (high_colour - low_colour) * amount[..., None].astype(np.float32)


def _grass(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    amount = 0.5 * _noise(rng, size, 21 * scale, aspect=3.0) + 0.5 * _noise(rng, size, 64.0)
    return _blend(amount, (35, 95, 25), (110, 175, 60))


def _water(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    y, x = coordinates(size) / np.float32(size / REFERENCE_SIZE)
    phase = 6 * _noise(rng, size, 6.0) + 0.8 * np.sin(x / 17 * scale)
    waves = 0.5 + 0.5 * np.sin(y * 2 * math.pi / (14 * scale) + phase)
    amount = 0.8 * waves + 0.2 * _noise(rng, size, 12.0, aspect=0.4)
    return _blend(amount, (20, 80, 135), (80, 155, 195))


def _sand(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    amount = 0.35 * _noise(rng, size, 8.0) + 0.65 * _grain(rng, size)
    return _blend(amount, (195, 165, 105), (235, 210, 155))


def _sky(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    clouds = 0.6 * _noise(rng, size, 4 * scale, 0.6) + 0.4 * _noise(rng, size, 9 * scale, 0.6)
    amount = np.clip((clouds - 0.45) * 3, 0, 1) * 0.8 + 0.2 * coordinates(size)[0] / size
    return _blend(amount, (110, 175, 240), (240, 246, 252))


def _brick(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    y, x = coordinates(size) / np.float32(size / REFERENCE_SIZE)
    height, width = 16 * scale, 36 * scale
    row = np.floor(y / height)
    shifted = x + (row % 2) * width / 2
    mortar = ((y % height) < 2.2) | ((shifted % width) < 2.2)
    brick = (row * 131 + np.floor(shifted / width) * 17).astype(int) % 97
    picture = _blend(rng.random(97).astype(np.float32)[brick], (135, 55, 40), (180, 85, 65))
    picture[mortar] = (195, 185, 175)
    return picture + rng.normal(0, 6, (size, size, 1)).astype(np.float32)


def _wood(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    y, x = coordinates(size) / np.float32(size / REFERENCE_SIZE)
    phase = 8 * _noise(rng, size, 4.0) + 4 * _noise(rng, size, 3.0, aspect=0.4) + 0.03 * y
    fibres = 0.5 + 0.5 * np.sin(x * 2 * math.pi / (18 * scale) * 0.7 + phase)
    amount = 0.75 * fibres + 0.25 * _grain(rng, size)
    amount[y % (52 * scale) < 2] = -0.5  # gaps between planks
    return _blend(amount, (100, 62, 30), (165, 115, 65))


def _snow(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    amount = 0.7 * _noise(rng, size, 7.0) + 0.3 * _grain(rng, size)
    return _blend(amount, (205, 215, 232), (252, 252, 255))


def _stone(rng: np.random.Generator, size: int, scale: float) -> np.ndarray:
    """Voronoi slabs, worked out on a grid of half the reference size."""
    slabs, grid = int(70 / scale), REFERENCE_SIZE // 2
    centre_y, centre_x = rng.random((2, slabs)).astype(np.float32) * REFERENCE_SIZE
    y, x = (2 * axis[..., None] for axis in coordinates(grid))
    distance = np.hypot(y - centre_y, x - centre_x)
    nearest = np.partition(distance, 1, axis=-1)
    tone = (rng.random(slabs).astype(np.float32) * 0.6 + 0.2)[distance.argmin(axis=-1)]
    tone[nearest[..., 1] - nearest[..., 0] < 3.5] = -0.3  # joints
    amount = cv2.resize(tone, (size, size), interpolation=cv2.INTER_LINEAR) + 0.15 * _grain(rng, size)
    return _blend(amount, (85, 85, 90), (170, 170, 172))


_PAINTERS = dict(zip(GROUNDS, (_grass, _water, _sand, _sky, _brick, _wood, _snow, _stone), strict=True))


def paint_ground(name: str, size: int, rng: np.random.Generator) -> np.ndarray:
    """Paints one ground over the whole canvas: (size, size, 3) float32."""
    return _PAINTERS[name](rng, size, rng.uniform(0.7, 1.4))


def _pattern(texture: str, along: np.ndarray, across: np.ndarray, period: float) -> np.ndarray:
    """Where a texture shows its second tone: (size, size) bool."""
    if texture == "striped":
        return along % period < period * 0.45
    if texture == "dotted":
        return np.hypot(along % period - period / 2, across % period - period / 2) < period * 0.3
    if texture == "checkered":
        cell = period * 0.6
        return (np.floor(along / cell) + np.floor(across / cell)) % 2 == 0
    return np.zeros(along.shape, bool)


def paint_object(
    colour: str, texture: str, centre: Point, radius: float, angle: float, size: int, rng: np.random.Generator
) -> np.ndarray:
    """Paints an object's surface over the whole canvas, shaded from one side: (size, size, 3) float32."""
    base = np.clip(np.array(COLOURS[colour]) + rng.normal(0, 9, 3), 0, 255)
    brightness = base.mean()
    darken = (brightness > 130 or rng.random() < 0.3) and brightness > 60  # in the pattern; dark colours lighten
    second = base * 0.5 if darken else base + (255 - base) * 0.45
    y, x = coordinates(size)
    x, y = x - centre[0], y - centre[1]
    turn = angle + rng.uniform(-0.3, 0.3)
    along, across = x * math.cos(turn) + y * math.sin(turn), y * math.cos(turn) - x * math.sin(turn)
    period = max(9.0 * size / REFERENCE_SIZE, radius * rng.uniform(0.38, 0.55))
    surface = np.where(_pattern(texture, along, across, period)[..., None], second, base)
    light = rng.uniform(0, 2 * math.pi)
    shade = 1 + 0.16 * np.clip((x * math.cos(light) + y * math.sin(light)) / radius, -1, 1)
    return (surface * shade[..., None]).astype(np.float32)
