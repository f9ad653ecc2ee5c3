"""The eight backgrounds, each a large tile made once, of which a scene takes a window."""

import functools

import numpy as np

from smoljax.data.scenes.draws import Draws
from smoljax.data.scenes.vocabulary import BACKGROUNDS, SIDE

_TILE = 288
_TONES = {
    "sand": ((226, 206, 164), (198, 174, 128)),
    "grass": ((166, 200, 120), (128, 168, 86)),
    "sky": ((176, 214, 242), (240, 246, 250)),
    "stone": ((168, 168, 166), (126, 128, 132)),
    "wood": ((206, 170, 122), (172, 132, 86)),
    "snow": ((244, 247, 250), (220, 228, 238)),
    "night": ((30, 32, 66), (52, 50, 92)),
    "brick": ((186, 138, 122), (168, 116, 100)),
}


def ground(name: str, draws: Draws) -> np.ndarray:
    """[96, 96, 3] float32: a window of the named background, mirrored and lit at random."""
    bank = _bank(name)
    x, y = draws.below(_TILE - SIDE), draws.below(_TILE - SIDE)
    window = bank[y : y + SIDE, x : x + SIDE]
    if draws.chance(0.5):
        window = window[:, ::-1]
    return window * np.float32(draws.between(0.94, 1.05))


def _cloud(random: np.random.Generator, x_scale: float, y_scale: float) -> np.ndarray:
    """[288, 288] low-frequency noise, 0 … 1; the scales are periods in pixels."""
    fy, fx = np.fft.fftfreq(_TILE)[:, None] * y_scale, np.fft.rfftfreq(_TILE)[None] * x_scale
    spectrum = np.fft.rfft2(random.normal(size=(_TILE, _TILE))) * np.exp(-(fx**2 + fy**2) * 4)
    field = np.fft.irfft2(spectrum, (_TILE, _TILE))
    field = field / field.std()
    return np.clip(0.5 + field / 4, 0, 1)


@functools.cache
def _bank(name: str) -> np.ndarray:
    random = np.random.Generator(np.random.Philox(np.random.SeedSequence([7, BACKGROUNDS.index(name)])))
    one, two = (np.array(tone, float) for tone in _TONES[name])
    y, x = np.mgrid[:_TILE, :_TILE]
    if name == "wood":
        grain = 0.55 * _cloud(random, 90, 4) + 0.45 * _cloud(random, 140, 14)
        grain = np.clip((grain - 0.5) * 1.7 + 0.5, 0, 1)
        grain = np.where(y % 36 == 0, 1.45, grain)
    elif name == "brick":
        row = y // 12
        mortar = (y % 12 < 1) | ((x + (row % 2) * 14) % 28 < 1)
        column = (x + (row % 2) * 14) // 28
        tone = random.random((64, 64))[row, column]
        grain = 0.75 * tone + 0.25 * _cloud(random, 5, 5)
        result = one + grain[..., None] * (two - one)
        result[mortar] = (206, 192, 180)
        return result.astype(np.float32)
    elif name == "grass":
        grain = 0.6 * _cloud(random, 3, 12) + 0.4 * _cloud(random, 60, 60)
    elif name == "sky":
        grain = np.clip((_cloud(random, 70, 36) - 0.5) * 2.2 + 0.3, 0, 1)
    elif name == "sand":
        ripple = 0.5 + 0.5 * np.sin(2 * np.pi * (y / 18 + 1.6 * _cloud(random, 110, 70)))
        grain = 0.5 * ripple + 0.5 * _cloud(random, 8, 5)
    elif name == "stone":
        grain = 0.5 * _cloud(random, 40, 40) + 0.5 * _cloud(random, 6, 6)
    else:
        grain = _cloud(random, 60, 45)
    result = one + grain[..., None] * (two - one)
    if name == "night":
        for _ in range(260):
            i, j, glow = random.integers(_TILE), random.integers(_TILE), random.uniform(60, 150)
            result[i, j] += glow
    return result.astype(np.float32)
