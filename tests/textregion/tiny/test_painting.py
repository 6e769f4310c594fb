import math

import numpy as np
import pytest

from textregion.tiny.painting import OUTLINES, SHAPES, shape_alpha

RADIUS, SIZE = 180.0, 600

# Areas in units of radius squared, worked out by hand; the moon and the heart have no short formula.
AREAS = {
    "circle": math.pi,
    "square": 1.7**2,
    "triangle": 0.5 * 1.9 * 1.75,
    "star": 10 * 0.5 * 0.42 * math.sin(math.pi / 5),
    "cross": 4 * 0.66 * 0.67 + 0.66**2,
    "ring": math.pi * (1 - 0.55**2),
    "hexagon": 1.5 * math.sqrt(3),
    "arrow": 1.1 * 0.6 + 0.5 * 1.6 * 0.9,
}


def area(shape, **options):
    arguments = {"centre": (300.0, 300.0), "radius": RADIUS, "angle": 0.0, "size": SIZE} | options
    return (shape_alpha(shape, **arguments) > 127).sum() / RADIUS**2


@pytest.mark.parametrize("shape", AREAS)
def test_areas_are_those_of_the_figures(shape):
    assert area(shape) == pytest.approx(AREAS[shape], rel=0.025)


@pytest.mark.parametrize("shape", SHAPES)
def test_turning_and_stretching_keep_the_area(shape):
    assert area(shape, angle=0.7, aspect=1.1) == pytest.approx(area(shape), rel=0.04)


@pytest.mark.parametrize("shape", SHAPES)
def test_outlines_stay_near_the_unit_circle(shape):
    assert np.hypot(*OUTLINES[shape].T).max() <= 1.25


def test_ring_and_moon_are_open_where_they_should_be():
    ring, moon = (shape_alpha(shape, (100.0, 100.0), 60.0, 0.0, 200) for shape in ("ring", "moon"))
    assert ring[100, 100] == 0
    assert ring[100, 100 + 48] == 255
    assert moon[100, 130] == 0
    assert moon[100, 100 - 50] == 255


def test_angles_turn_clockwise():
    arrow = shape_alpha("arrow", (100.0, 100.0), 60.0, math.pi / 2, 200)  # points right, turned down
    assert arrow[100 + 40, 100 - 15] == 255
    assert arrow[100 - 40, 100 - 30] == 0
