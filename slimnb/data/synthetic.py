"""The generated data set: textured shapes in ten classes, with a known difficulty for every image.

A class is a shape and a texture ("striped ring"). On easy images its colour gives it away, which a few channels can
see. On hard ones the colour is random. The object is smaller, paler, noisier, partly covered and among clutter of the
same shapes and textures; only the conjunction of shape and texture is left. All operations are correctly rounded
(cosines are rounded to five decimals), so the pixels, and with them every fingerprint, are the same on all machines.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from slimnb.errors import ParameterError
from slimnb.rng import keyed_bits, keyed_uniform
from slimnb.rules import Array, Count, Seed, checked

SIZE = 32
"""Side of an image, pixels."""
SHAPES = ("disc", "square", "triangle", "ring", "cross")
TEXTURES = ("striped", "spotted")
CLASS_NAMES = tuple(f"{texture} {shape}" for shape in SHAPES for texture in TEXTURES)
"""Label k is shape k // 2 with texture k % 2."""

# Each pair is (value at difficulty 0, value at difficulty 1); lengths are in half images (1 = 16 pixels).
COLOUR_CUE = (1.6, -0.6)  # probability, clipped to [0, 1], that the object wears its class's own hue
RADIUS = (0.82, 0.60)  # of the object
CONTRAST = (1.0, 0.8)  # of the object and its texture against the background
COVERED = (-0.3, 0.3)  # width of the bar across the object, in radii; negative = no bar
NOISE = (0.02, 0.09)  # standard deviation of the pixel noise; the pixel range is 1
CLUTTER = (0.0, 4.0)  # expected number of small distracting pieces

_CHUNK = 500  # images drawn at a time: 6 MB of pixels, which stays in cache
_NOISE_WORDS = 3 * SIZE * SIZE * 2 // 8  # two random bytes a pixel and channel, in 64-bit words
_GRID = ((np.arange(SIZE) + 0.5) / (SIZE / 2) - 1).astype(np.float32)
_TURN = float(np.float32(2 * np.pi))


class _Draws:
    """Named uniform draws, one per image, keyed by (seed, part, name, image index)."""

    def __init__(self, seed: int, part: str, index: Tensor):
        self.seed, self.part, self.index = seed, part, index

    def __call__(self, name: str, low: float = 0.0, high: float = 1.0) -> np.ndarray:
        unit = keyed_uniform(self.seed, f"{self.part}/{name}", 0, self.index).numpy()
        return low + (high - low) * unit  # (n,) float32

    def choice(self, name: str, count: int) -> np.ndarray:
        return np.floor(self(name, 0, count)).astype(np.int64)

    def colour(self, name: str) -> np.ndarray:
        return np.stack([self(f"{name} {channel}") for channel in "rgb"], axis=1)  # (n, 3)


def _map(values: np.ndarray) -> np.ndarray:
    return values[:, None, None]  # (n,) -> (n, 1, 1), to meet (n, 32, 32)


def _rotate(x: np.ndarray, y: np.ndarray, angle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # The last bit of a cosine differs between maths libraries, its fifth decimal does not.
    cos, sin = (_map(f(angle.astype(np.float64)).round(5).astype(np.float32)) for f in (np.cos, np.sin))
    return cos * x + sin * y, cos * y - sin * x


def _hues(turns: np.ndarray) -> np.ndarray:
    """Saturated colours (n, 3) of hues (n,) in turns; red is 0."""
    sector = turns[:, None] * 6 + np.array([0, 4, 2], dtype=np.float32)
    return np.clip(np.abs(sector - 6 * np.floor(sector / 6) - 3) - 1, 0, 1)


def _outline(shape: np.ndarray, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Signed distance (n, 32, 32) to each image's shape, negative inside; the shape has radius about 1."""
    r, a, b = np.sqrt(u * u + v * v), np.abs(u), np.abs(v)
    distances = (
        r - 1,
        np.maximum(a, b) - 0.88,
        np.maximum(v, 0.866 * a - 0.5 * v) - 0.6,
        np.abs(r - 0.72) - 0.3,
        np.minimum(np.maximum(a - 0.34, b - 1), np.maximum(b - 0.34, a - 1)),
    )
    return np.select([_map(shape == k) for k in range(len(SHAPES))], distances)


def _pattern(texture: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Stripes or spots in [-1, 1], (n, 32, 32), with one period per unit of x and y."""
    stripes, across = (4 * np.abs(z - np.floor(z) - 0.5) - 1 for z in (x, y))
    return np.clip(2 * np.where(_map(texture == 0), stripes, np.minimum(stripes, across)), -1, 1)


def _piece(draw: _Draws, name: str, label: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray,
           tilt: float, frequency: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Coverage in [0, 1] and texture in [-1, 1] of one piece, both (n, 32, 32)."""
    u, v = _rotate(x, y, draw(f"{name} tilt", -tilt, tilt))
    edge = _outline(label // 2, u / _map(radius), v / _map(radius)) * _map(radius) * (SIZE / 2)
    u, v = _rotate(x, y, draw(f"{name} grain", 0, _TURN / 2))
    scale, phase = _map(draw(f"{name} frequency", *frequency)), _map(draw(f"{name} phase"))
    return np.clip(0.5 - edge, 0, 1), _pattern(label % 2, u * scale + phase, v * scale + phase)


def _paint(images: np.ndarray, coverage: np.ndarray, colour: np.ndarray) -> None:
    images += coverage[:, None] * (colour - images)


def _background(draw: _Draws) -> tuple[np.ndarray, np.ndarray]:
    """A colour (n, 3) and the images (n, 3, 32, 32) that shade it from side to side."""
    colour = 0.25 + 0.5 * draw.colour("background")
    shade = _map(draw("shade x", -0.15, 0.15)) * _GRID + _map(draw("shade y", -0.15, 0.15)) * _GRID[:, None]
    return colour, colour[:, :, None, None] + shade[:, None]


def _add_clutter(images: np.ndarray, seed: int, part: str, index: Tensor, difficulty: np.ndarray) -> None:
    expected = CLUTTER[0] + (CLUTTER[1] - CLUTTER[0]) * difficulty
    count = np.floor(expected + _Draws(seed, part, index)("clutter"))
    for k in range(int(count.max())):
        cluttered = np.flatnonzero(count > k)
        draw, name = _Draws(seed, part, index[cluttered]), f"clutter {k}"
        x = _GRID - _map(draw(f"{name} x", -1, 1))
        y = _GRID[:, None] - _map(draw(f"{name} y", -1, 1))
        label, radius = draw.choice(f"{name} class", 10), draw(f"{name} radius", 0.12, 0.28)
        coverage, texture = _piece(draw, name, label, x, y, radius, _TURN / 2, (2.2, 3.5))
        colour = (0.25 + 0.5 * _hues(draw(f"{name} hue")))[:, :, None, None] + 0.22 * texture[:, None]
        piece = images[cluttered]
        _paint(piece, coverage, colour)
        images[cluttered] = piece


def _add_object(images: np.ndarray, draw: _Draws, label: np.ndarray, difficulty: np.ndarray,
                background: np.ndarray) -> None:
    def at(ends: tuple[float, float]) -> np.ndarray:
        return ends[0] + (ends[1] - ends[0]) * difficulty

    own = (label / 10).astype(np.float32) + draw("hue jitter", -0.03, 0.03)
    hue = np.where(draw("cue") < at(COLOUR_CUE), own, draw("hue"))
    radius = at(RADIUS) * draw("radius", 0.9, 1.1)
    room = np.maximum(0.98 - radius, 0)
    x = _GRID - _map(room * draw("x", -1, 1))
    y = _GRID[:, None] - _map(room * draw("y", -1, 1))
    coverage, texture = _piece(draw, "object", label, x, y, radius, 0.25, (2.4, 3.4))
    dark, light = 0.55 * _hues(hue), 0.45 + 0.55 * _hues(hue)
    contrast = at(CONTRAST)[:, None]
    middle = background + contrast * ((light + dark) / 2 - background)
    swing = contrast * (light - dark) / 2
    _paint(images, coverage, middle[:, :, None, None] + swing[:, :, None, None] * texture[:, None])

    across, _ = _rotate(x, y, draw("bar angle", 0, _TURN))
    width = np.maximum(at(COVERED), 0) * radius
    distance = np.abs(across - _map(radius * draw("bar place", 0, 0.8))) - _map(width / 2)
    bar = np.clip(0.5 - distance * (SIZE / 2), 0, 1) * _map(width > 0)
    _paint(images, bar, draw.colour("bar")[:, :, None, None])


def _add_noise(images: np.ndarray, seed: int, part: str, index: Tensor, difficulty: np.ndarray) -> None:
    words = keyed_bits(seed, f"{part}/noise", 0, index[:, None] * _NOISE_WORDS + torch.arange(_NOISE_WORDS))
    pair = words.numpy().view(np.uint8).reshape(len(images), 2, 3, SIZE, SIZE)
    noise = pair[:, 0].astype(np.float32) + pair[:, 1] - 255  # two bytes' sum: standard deviation 104.5
    images += noise * (NOISE[0] + (NOISE[1] - NOISE[0]) * difficulty)[:, None, None, None] / 104.5


@checked
def render(index: Array, seed: Seed = 0, part: str = "train", labels: Array | None = None,
           difficulty: Array | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the images number `index` (n,) of the endless sequence (seed, part): (images, labels, difficulty).

    Images are (n, 3, 32, 32) uint8, labels (n,) int64, difficulty (n,) float32 in [0, 1]. `labels` or `difficulty`, a
    number or one per image, replace the random ones and leave the rest of the scene as it is. Raises ParameterError for
    values out of range.
    """
    index = torch.as_tensor(index, dtype=torch.int64).reshape(-1)
    draw = _Draws(seed, part, index)
    label = draw.choice("class", 10) if labels is None else np.asarray(labels, dtype=np.int64)
    hard = draw("difficulty") if difficulty is None else np.asarray(difficulty, dtype=np.float32)
    label, hard = (np.broadcast_to(values, (len(index),)) for values in (label, hard))
    if not ((label >= 0) & (label < 10)).all() or not ((hard >= 0) & (hard <= 1)).all():
        what = f"labels {label.min()}..{label.max()}, difficulty {hard.min()}..{hard.max()}"
        raise ParameterError(what, "labels are 0 to 9 and difficulty is in [0, 1]", "Mend them.")
    background, images = _background(draw)
    _add_clutter(images, seed, part, index, hard)
    _add_object(images, draw, label, hard, background)
    _add_noise(images, seed, part, index, hard)
    pixels = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
    return torch.from_numpy(pixels), torch.from_numpy(label.copy()), torch.from_numpy(hard.copy())


@checked
def generate(count: Count, seed: Seed = 0, part: str = "train") -> tuple[Tensor, Tensor, Tensor]:
    """Draw the first `count` images of the sequence (seed, part), as `render` does; 12,000 take 1 to 2 s."""
    rendered = [render(chunk, seed, part) for chunk in torch.arange(count).split(_CHUNK)]
    return tuple(torch.cat(chunks) for chunks in zip(*rendered, strict=True))
