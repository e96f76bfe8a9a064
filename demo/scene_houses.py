"""Functions that draw the houses in the scenes of demo/draw_scenes.py."""

import numpy as np
from scene_canvas import KINDS, Scene

WALLS = (
    (0.72, 0.66, 0.56),
    (0.62, 0.36, 0.28),
    (0.80, 0.78, 0.74),
    (0.52, 0.53, 0.56),
    (0.56, 0.60, 0.46),
    (0.70, 0.58, 0.42),
    (0.46, 0.54, 0.62),
)


def facade(s: Scene, floors: int, bays: int, wall: np.ndarray) -> np.ndarray:
    """Draw the front of a house, (h, w, 3): bricks or plaster, and windows, some of them lit."""
    rng, cell = s.rng, 16
    h, w = floors * cell, bays * cell
    front = wall * (0.82 + 0.3 * s.noise(h, w, 0.7))[..., None]
    if rng.random() < 0.5:
        front[::4] *= 0.86
    y, x = np.arange(h) % cell, np.arange(w) % cell
    tall, wide = rng.uniform(5, 9), rng.uniform(4, 11)
    pane = (y > 3)[:, None] & (y < 3 + tall)[:, None] & (np.abs(x - 8) < wide / 2)
    glass = s.zenith * 0.35 + rng.uniform(0.02, 0.2)
    glass = np.tile(np.float32(glass), (floors, bays, 1)) * rng.uniform(0.6, 1.3, (floors, bays, 1))
    lit = rng.random((floors, bays)) < (0.45 if s.light_name in ('night', 'dusk') else 0.04)
    glass[lit] = np.array((1.0, 0.85, 0.5)) / s.light * 0.9
    panes = np.kron(glass, np.ones((cell, cell, 1)))
    front[pane] = panes[pane]
    front[-int(tall) - 3 :, w // 2 - 3 : w // 2 + 4] = s.colour((0.3, 0.2, 0.15), 0.08)
    return front.astype(np.float32)


def draw_building(s: Scene, u: float, z: float) -> None:
    """Draw a house with a gable, or a block, with its near corner at (u, z) m and its side towards the road."""
    rng, wall = s.rng, s.colour(WALLS[s.rng.integers(len(WALLS))])
    gabled = rng.random() < (0.75 if s.kind is not KINDS['street'] else 0.25)
    floors = int(rng.integers(1, 3) if gabled else rng.integers(2, 9))
    width, depth, height = rng.uniform(5, 13), rng.uniform(5, 14), floors * rng.uniform(2.6, 3.4)
    out = 1 if s.at(u, 0, z)[0] > s.vanish else -1
    inner, outer, back = u, u + out * width, z + depth

    def wall_between(texture, *points):
        s.quad(texture, [s.at(*point) for point in points], 'building', z)

    side = facade(s, floors, max(1, int(depth / 3)), wall * rng.uniform(0.6, 0.8))
    roof = s.colour(((0.50, 0.24, 0.18), (0.34, 0.30, 0.30), (0.42, 0.36, 0.28))[rng.integers(3)])
    roof = np.tile(roof, (24, 24, 1))
    roof[::4] *= 0.8
    top, middle = height + width * rng.uniform(0.25, 0.5), (inner + outer) / 2
    if gabled:
        wall_between(roof, (middle, top, z), (middle, top, back), (inner, height, back), (inner, height, z))
    wall_between(side, (inner, height, z), (inner, height, back), (inner, 0, back), (inner, 0, z))
    front = facade(s, floors, max(1, int(width / 3)), wall)
    wall_between(front, (inner, height, z), (outer, height, z), (outer, 0, z), (inner, 0, z))
    if gabled:
        tip = out * width * 0.02  # of no width, the quadrilateral would have no perspective
        wall_between(
            np.tile(wall, (16, 16, 1)),
            (middle - tip, top, z),
            (middle + tip, top, z),
            (outer, height, z),
            (inner, height, z),
        )
