"""Canvas of demo/draw_scenes.py, and functions that draw the land: sky, hills, ground, water, road.

Lengths in the scene are metres, seen by a pinhole camera; colours are RGB in 0..1.
"""

from collections.abc import Sequence
from typing import Optional, Union

import cv2
import numpy as np

CLASSES = ('sky', 'hill', 'building', 'road', 'grass', 'earth', 'tree', 'water', 'car', 'person', 'pole', 'fence')
LABELS = {name: i + 1 for i, name in enumerate(CLASSES)}
SIZES = ((512, 384), (512, 384), (512, 384), (512, 384), (480, 360), (576, 384), (448, 448))  # (W, H), px

# Contents of each kind of scene: probabilities, or (least, most) counts.
KINDS = {
    'street': dict(
        hills=0.3,
        road=1.0,
        water=0.0,
        blocks=(3, 9),
        skyline=(2, 6),
        trees=(1, 8),
        cars=(2, 6),
        people=(2, 8),
        poles=(2, 5),
        fences=(0, 1),
    ),
    'village': dict(
        hills=0.7,
        road=0.8,
        water=0.1,
        blocks=(1, 5),
        skyline=(0, 3),
        trees=(4, 12),
        cars=(0, 3),
        people=(1, 5),
        poles=(1, 5),
        fences=(1, 3),
    ),
    'country': dict(
        hills=0.9,
        road=0.5,
        water=0.3,
        blocks=(0, 1),
        skyline=(0, 2),
        trees=(5, 16),
        cars=(0, 2),
        people=(0, 3),
        poles=(0, 4),
        fences=(1, 3),
    ),
    'shore': dict(
        hills=0.8,
        road=0.15,
        water=1.0,
        blocks=(0, 2),
        skyline=(0, 5),
        trees=(2, 9),
        cars=(0, 2),
        people=(1, 6),
        poles=(0, 3),
        fences=(0, 2),
    ),
}
# Colour of the sky at the zenith, at the horizon, light, distance in m at which haze is 63%, probability.
LIGHTS = {
    'day': ((0.25, 0.48, 0.82), (0.78, 0.87, 0.95), (1.0, 1.0, 0.97), 420, 0.38),
    'cloudy': ((0.58, 0.62, 0.68), (0.80, 0.81, 0.82), (0.82, 0.84, 0.88), 300, 0.22),
    'dusk': ((0.32, 0.27, 0.48), (0.98, 0.66, 0.40), (0.88, 0.68, 0.60), 260, 0.18),
    'fog': ((0.74, 0.76, 0.78), (0.82, 0.83, 0.84), (0.86, 0.87, 0.88), 60, 0.10),
    'night': ((0.05, 0.07, 0.16), (0.22, 0.22, 0.34), (0.44, 0.48, 0.62), 300, 0.12),
}


class Scene:
    """A picture that is painted from far to near.

    ``rgb`` is (H, W, 3), ``label`` (H, W) with 0 unlabelled, and ``thing`` (H, W) the number of the object, 0: land.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]):
        self.rng, (self.w, self.h) = rng, size
        self.rgb = np.zeros((self.h, self.w, 3), np.float32)
        self.label = np.zeros((self.h, self.w), np.uint8)
        self.thing, self.number = np.zeros((self.h, self.w), np.int32), 0
        self.tile = sum(
            cv2.resize(rng.random((2**k, 2**k), np.float32), (512, 512), interpolation=cv2.INTER_CUBIC) * 0.62**k
            for k in range(2, 9)
        )
        self.tile = np.clip((self.tile - self.tile.mean()) / self.tile.std() * 0.22 + 0.5, 0, 1)
        self.kind = KINDS[rng.choice(list(KINDS))]
        self.light_name = rng.choice(list(LIGHTS), p=[light[-1] for light in LIGHTS.values()])
        zenith, horizon, light, self.clear, _ = LIGHTS[self.light_name]
        self.zenith, self.haze = (np.array(c, np.float32) + rng.normal(0, 0.02, 3) for c in (zenith, horizon))
        self.light = np.array(light, np.float32) * rng.uniform(0.88, 1.08)
        self.focal = self.w * rng.uniform(0.65, 1.0)
        self.camera = rng.uniform(1.5, 4.5)
        self.horizon = int(self.h * rng.uniform(0.28, 0.6))
        self.vanish = self.w * rng.uniform(0.3, 0.7)
        self.bend = rng.normal(0, 0.006)
        self.road = 0.0

    def colour(self, base: tuple, spread: float = 0.05) -> np.ndarray:
        """Vary brightness and hue of the colour ``base`` (3,) at random."""
        moved = np.array(base) * self.rng.uniform(1 - 3 * spread, 1 + 3 * spread)
        return np.clip(moved + self.rng.normal(0, 0.6 * spread, 3), 0.02, 1).astype(np.float32)

    def noise(self, h: int, w: int, zoom: float = 1.0) -> np.ndarray:
        """Draw fractal noise (h, w) in 0..1; ``zoom`` above 1 makes it coarser."""
        y, x = (self.rng.integers(0, 1024) + (np.arange(n) / zoom).astype(int) for n in (h, w))
        fold = lambda i: np.minimum(i % 1024, 1023 - i % 1024)
        return self.tile[fold(y)[:, None], fold(x)]

    def far(self, z: Union[float, np.ndarray]) -> Union[float, np.ndarray]:
        """Share of haze in an object z m away."""
        return 1 - np.exp(-np.asarray(z, np.float32) / self.clear)

    def at(self, u: float, y: float, z: float) -> tuple[float, float]:
        """Pixel of the point u m right of the road's middle at the camera, y m up and z m away."""
        return (
            self.vanish + (u + self.bend * z * z) * self.focal / z,
            self.horizon + (self.camera - y) * self.focal / z,
        )

    def paste(
        self, patch: np.ndarray, mask: np.ndarray, left: float, top: float, name: Optional[str], z: float
    ) -> None:
        """Paint ``patch`` (h, w, 3) where ``mask`` is set, at (left, top) px and z m away; ``name`` None: no label."""
        left, top = int(round(left)), int(round(top))
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + mask.shape[1], self.w), min(top + mask.shape[0], self.h)
        if x0 >= x1 or y0 >= y1:
            return
        part = np.s_[y0 - top : y1 - top, x0 - left : x1 - left]
        mask, patch, fog = mask[part], patch[part], self.far(z)
        self.rgb[y0:y1, x0:x1][mask] = (patch * self.light * (1 - fog) + self.haze * fog)[mask]
        self.label[y0:y1, x0:x1][mask] = LABELS.get(name, 0)
        self.thing[y0:y1, x0:x1][mask] = self.number

    def quad(self, texture: np.ndarray, corners: Sequence, name: Optional[str], z: float) -> None:
        """Paint ``texture`` onto the quadrilateral of four ``corners`` (px), clockwise from the upper left."""
        corners = np.array(corners, np.float32)
        x0, y0 = np.maximum(np.floor(corners.min(0)).astype(int), 0)
        x1, y1 = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, (self.w, self.h))
        if x0 >= x1 or y0 >= y1:
            return
        h, w = texture.shape[:2]
        move = cv2.getPerspectiveTransform(
            np.array([(0, 0), (w, 0), (w, h), (0, h)], np.float32), corners - np.float32((x0, y0))
        )
        size = int(x1 - x0), int(y1 - y0)
        patch = cv2.warpPerspective(texture, move, size, borderMode=cv2.BORDER_REPLICATE)
        mask = cv2.fillConvexPoly(np.zeros(size[::-1], np.uint8), np.int32(np.round(corners - (x0, y0))), 1)
        patch = patch * (0.85 + 0.3 * self.noise(size[1], size[0], 0.5))[..., None]
        self.paste(patch, mask > 0, x0, y0, name, z)

    def shadow(self, x: float, y: float, rx: float, ry: float) -> None:
        """Darken an ellipse of radii rx, ry around (x, y), in px."""
        x0, y0 = int(max(x - rx, 0)), int(max(y - ry, 0))
        x1, y1 = int(min(x + rx, self.w)), int(min(y + ry, self.h))
        if x0 < x1 and y0 < y1:
            gy, gx = np.mgrid[y0:y1, x0:x1]
            near = np.clip(1 - ((gx - x) / rx) ** 2 - ((gy - y) / ry) ** 2, 0, 1)
            self.rgb[y0:y1, x0:x1] *= 1 - 0.45 * near[..., None].astype(np.float32)


def draw_sky(s: Scene) -> None:
    """Draw the sky: gradient, sun or moon, clouds or stars."""
    h, w, rng = s.horizon + 2, s.w, s.rng
    t = np.linspace(0, 1, h, dtype=np.float32)[:, None, None] ** rng.uniform(0.7, 1.6)
    sky = s.zenith * (1 - t) + s.haze * t + np.zeros((h, w, 1), np.float32)
    if s.light_name != 'fog' and rng.random() < 0.55:
        x, y, r = rng.uniform(0, w), rng.uniform(0.1, 0.9) * h, rng.uniform(7, 18)
        gy, gx = np.ogrid[:h, :w]
        d = np.sqrt((gx - x) ** 2 + (gy - y) ** 2).astype(np.float32)[..., None]
        disc = np.array((0.95, 0.95, 0.88) if s.light_name == 'night' else (1.0, 0.95, 0.75), np.float32)
        glow = np.clip(r + 1 - d, 0, 1) + 0.45 * np.exp(-d / (5 * r))
        sky += (disc - sky) * np.minimum(glow, 1)
    if s.light_name == 'night':
        sky += (rng.random((h, w, 1), np.float32) > 0.9985) * 0.6
    clouds = cv2.resize(s.noise(h, w, rng.uniform(0.6, 1.2)), (w, h))
    clouds = cv2.GaussianBlur(clouds, (0, 0), 1.2)[..., None]
    cover = rng.uniform(0.42, 0.85) if s.light_name != 'cloudy' else rng.uniform(0.25, 0.45)
    white = np.clip(s.haze * 0.6 + 0.42 * s.light, 0, 1) * (1 - 0.35 * np.clip(clouds - cover - 0.1, 0, 1) * 2)
    sky += (white - sky) * np.clip((clouds - cover) * 4, 0, 0.9) * (1 - 0.5 * t)
    s.rgb[:h], s.label[:h] = sky, LABELS['sky']


def draw_hills(s: Scene) -> None:
    """Draw one to three ranges of mountains or wooded hills, with more haze the farther they are."""
    rng, x = s.rng, np.arange(s.w)
    for z in np.sort(rng.uniform(90, 700, rng.integers(1, 4)))[::-1]:
        rough = rng.uniform(0.35, 0.62)
        ridge = sum(np.interp(x, np.linspace(0, s.w, 3 * 2**k), rng.random(3 * 2**k)) * rough**k for k in range(6))
        ridge = (ridge - ridge.min()) / np.ptp(ridge)
        height = s.horizon * rng.uniform(0.12, 0.8) * (0.5 + z / 1400)
        top = (s.horizon - height * (0.25 + 0.75 * ridge)).astype(int)
        y0 = max(top.min(), 0)
        y = np.arange(y0, s.horizon + 2)[:, None]
        n = s.noise(len(y), s.w, rng.uniform(0.4, 1.0))[..., None]
        base = s.colour(
            ((0.30, 0.38, 0.20), (0.42, 0.38, 0.34), (0.22, 0.30, 0.22), (0.48, 0.42, 0.30))[rng.integers(4)]
        )
        # Light from one side: the noise's slope shades the rock.
        relief = np.clip((n - np.roll(n, 3, 1)) * 4, -0.4, 0.4)
        patch = base * (0.6 + 0.8 * n + relief)
        if z > 350 and rng.random() < 0.6:
            snow = (y - top)[..., None] < s.horizon * 0.16 * n * 2
            patch = np.where(snow, np.float32((0.93, 0.94, 0.97)) * (0.9 + relief * 0.6), patch)
        s.paste(patch.astype(np.float32), y >= top, 0, y0, 'hill', z)


def draw_ground(s: Scene) -> None:
    """Draw fields of grass and earth, water and the road, in perspective."""
    rng, top = s.rng, s.horizon + 1
    gy, gx = np.mgrid[top : s.h, : s.w].astype(np.float32)
    z = np.minimum(s.camera * s.focal / (gy - s.horizon), 900)
    u = (gx - s.vanish) * z / s.focal - s.bend * z * z
    fade = np.exp(-z / 60)  # noise finer than a pixel would shimmer

    def plane(a, b, shift=0):
        return cv2.remap(
            s.tile,
            np.float32((u * a + shift) % 1024),
            np.float32((z * b + shift) % 1024),
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT,
        )

    offset = rng.uniform(0, 1000)
    detail, coarse = plane(31, 23, offset) * fade + 0.5 * (1 - fade), plane(1.3, 1.1, offset)
    grass = s.colour(((0.33, 0.47, 0.17), (0.45, 0.48, 0.22), (0.58, 0.55, 0.28))[rng.choice(3, p=(0.55, 0.3, 0.15))])
    earth = s.colour(((0.56, 0.45, 0.32), (0.74, 0.66, 0.50), (0.42, 0.34, 0.27), (0.52, 0.50, 0.47))[rng.integers(4)])
    blades = 0.5 + 0.6 * detail + 0.5 * s.noise(len(gy), s.w, 0.4) * fade
    pebbles = (s.noise(len(gy), s.w, 0.35) - 0.5) * fade
    grain = 0.72 + 0.3 * detail + 0.25 * coarse + 0.3 * pebbles
    if rng.random() < 0.4:
        grain += 0.10 * np.sin(u * rng.uniform(3, 7)) * fade  # ploughed
    if rng.random() < 0.4:
        edge = rng.uniform(-30, 30) + rng.uniform(-1, 1) * z
        bare = (u > edge) ^ (coarse > 0.72)
    else:
        bare = coarse > rng.uniform(0.35, 0.75)
    if s.kind['road'] == 1.0:
        bare |= rng.random() < 0.3
    patch = np.where(bare[..., None], earth * grain[..., None], grass * blades[..., None])
    label = np.where(bare, LABELS['earth'], LABELS['grass'])
    fog = s.far(z)[..., None]
    patch = patch * s.light * (1 - fog) + s.haze * fog

    if rng.random() < s.kind['water']:
        wobble = (coarse - 0.5) * rng.uniform(1, 3)
        row = (gy - top) / (s.h - top)
        far, near = (-1.0, rng.uniform(0.15, 0.7)), (rng.uniform(0.3, 0.6), 2.0)  # a sea, the shore in front
        river = rng.uniform(0.05, 0.25), rng.uniform(0.35, 0.7)
        low, high = (far, near, river)[rng.integers(3)]
        shift = wobble * 0.12 + (gx / s.w - 0.5) * rng.normal(0, 0.25)
        wet = (row + shift > low) & (row + shift < high)
        ripple = plane(6, 60, offset + 77) - 0.5
        back = np.clip(2 * s.horizon - gy - 1 + ripple * 26 * row, 0, s.horizon)
        mirror = cv2.remap(
            s.rgb, np.float32(gx + ripple * 10), np.float32(back), cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT
        )
        deep = s.colour((0.16, 0.30, 0.36)) * s.light
        share = np.clip(0.75 - 0.45 * row, 0.2, 0.8)[..., None]
        sea = mirror * share + deep * (1 - share) + (ripple * 0.35 * np.minimum(fade + 0.3, 1))[..., None]
        patch = np.where(wet[..., None], sea, patch)
        label = np.where(wet, LABELS['water'], label)

    if rng.random() < s.kind['road']:
        s.road = rng.uniform(2.4, 5.5)
        paved = rng.random() < 0.8
        tar = s.colour((0.36, 0.36, 0.38) if paved else (0.60, 0.50, 0.37), 0.03)
        tar = tar * (0.80 + 0.25 * detail + 0.15 * coarse + 0.2 * pebbles)[..., None]
        if paved:
            marks = (np.abs(u) < 0.09) & (z % 6 < 3)
            if rng.random() < 0.7:
                marks |= np.abs(np.abs(u) - s.road + 0.3) < 0.07
            tar[marks] = (0.88, 0.88, 0.84)
        else:
            tar *= 1 - 0.2 * np.exp(-(((np.abs(u) - s.road * 0.45) / 0.35) ** 2))[..., None]
        on = (np.abs(u) < s.road + (0 if paved else (coarse - 0.5))) & (z < 400)
        patch = np.where(on[..., None], tar * s.light * (1 - fog) + s.haze * fog, patch)
        label = np.where(on, LABELS['road'], label)
    s.rgb[top:], s.label[top:] = patch, label
