"""The shapes as polygons."""

import functools
import math

import numpy as np


@functools.cache
def _unit(shape: str) -> np.ndarray:
    """[n, 2] float64 corners of the shape inside the unit circle, y downwards."""

    def polar(angles: list[float], radii: list[float]) -> np.ndarray:
        return np.array(
            [
                (r * math.sin(math.radians(a)), -r * math.cos(math.radians(a)))
                for a, r in zip(angles, radii, strict=True)
            ]
        )

    if shape in ("circle", "ring"):
        return polar([360 * k / 48 for k in range(48)], [1.0] * 48)
    if shape == "square":
        return np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * 0.86
    if shape == "diamond":
        return np.array([(0, -1.1), (0.82, 0), (0, 1.1), (-0.82, 0)])
    if shape == "triangle":
        return polar([0, 120, 240], [1.15] * 3) + np.array([0, 0.24])
    if shape == "star":
        return polar([36 * k for k in range(10)], [1.12, 0.5] * 5) + np.array([0, 0.06])
    if shape == "cross":
        a, b = 1.0, 0.36
        return np.array(
            [
                (-b, -a),
                (b, -a),
                (b, -b),
                (a, -b),
                (a, b),
                (b, b),
                (b, a),
                (-b, a),
                (-b, b),
                (-a, b),
                (-a, -b),
                (-b, -b),
            ]
        )
    if shape == "heart":
        turn = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        return np.stack([x / 16, (y - 2) / 15], 1) * 1.02
    raise ValueError(shape)


HOLE = 0.48
"""The radius of a ring's hole, a share of the ring's."""


def outline(shape: str, radius: float, angle: float) -> np.ndarray:
    """[n, 2] float64 corners in pixels about (0, 0), turned clockwise by `angle` degrees."""
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return _unit(shape) @ np.array([[c, s], [-s, c]]) * radius
