"""Functions that draw the objects in the scenes of demo/draw_scenes.py; ``u`` and ``z`` are m to the right and away."""

import cv2
import numpy as np
from scene_canvas import Scene
from scene_houses import draw_building

PAINTS = (
    (0.75, 0.12, 0.10),
    (0.85, 0.85, 0.86),
    (0.12, 0.13, 0.15),
    (0.15, 0.28, 0.55),
    (0.55, 0.57, 0.60),
    (0.20, 0.38, 0.24),
    (0.80, 0.65, 0.20),
    (0.42, 0.30, 0.24),
)


def draw_tree(s: Scene, u: float, z: float) -> None:
    """Draw a round tree or a conifer, with a ragged edge and holes in the foliage."""
    rng, scale = s.rng, s.focal / z
    height = rng.uniform(2.5, 9)
    x, y = s.at(u, 0, z)
    h = min(int(height * scale), 3 * s.h)
    conifer = rng.random() < 0.35
    w = int(h * (rng.uniform(0.3, 0.5) if conifer else rng.uniform(0.55, 1.0)))
    if h < 6 or w < 4:
        return
    v, t = np.mgrid[0:h, 0:w].astype(np.float32)
    v, t = v / h, (t + 0.5) / w * 2 - 1
    n, fine = s.noise(h, w, max(h / 160, 0.3)), s.noise(h, w, 0.35)
    if conifer:
        inside = np.abs(t) < (v - 0.02) / 0.9 * (0.75 + 0.25 * np.sin(v * 38)) * (0.6 + 0.7 * n)
        inside &= v < 0.9
    else:
        crown = np.zeros((h, w), np.float32)
        for _ in range(rng.integers(5, 12)):
            r, angle = rng.uniform(0.13, 0.24) * min(w, h * 0.8), rng.uniform(0, 2 * np.pi)
            out = rng.random() ** 0.5
            centre = (0.5 + 0.27 * out * np.cos(angle)) * w, (0.37 + 0.19 * out * np.sin(angle)) * h
            cv2.circle(crown, [int(c) for c in centre], int(r) + 1, 1, -1)
        crown = cv2.GaussianBlur(crown, (0, 0), max(w * 0.035, 0.5))
        inside = crown + 0.9 * (n - 0.5) + 0.45 * (fine - 0.5) > 0.5
        inside[0] = inside[:, 0] = inside[:, -1] = False
    inside &= fine + n > rng.uniform(0.4, 0.68)
    green = s.colour(
        ((0.22, 0.36, 0.14), (0.30, 0.42, 0.16), (0.16, 0.27, 0.17), (0.55, 0.38, 0.14), (0.48, 0.46, 0.20))[
            rng.choice(5, p=(0.3, 0.25, 0.25, 0.1, 0.1))
        ]
    )
    clump = s.noise(h, w, max(h / 240, 0.3))
    # Leaves face the light in clumps.
    lit = np.clip((clump - np.roll(clump, (-3, -2), (0, 1))) * 3, -0.35, 0.35)
    patch = green * (0.32 + 0.8 * fine + 0.4 * n + lit - 0.3 * v - 0.2 * t)[..., None]
    trunk = (np.abs(t + 0.06 * np.sin(v * 9)) < rng.uniform(0.05, 0.09)) & (v > 0.5) & ~inside
    patch[trunk] = s.colour((0.32, 0.24, 0.17)) * (0.6 + 0.7 * fine[trunk])[:, None]
    s.shadow(x, y, w * 0.5, max(h * 0.05, 2))
    s.paste(patch.astype(np.float32), inside | trunk, x - w / 2, y - h, 'tree', z)


def draw_shapes(s: Scene, u: float, z: float, width: float, height: float, name: 'str | None', shapes: list) -> None:
    """Draw polygons and discs in a box of ``width`` x ``height`` m on the ground.

    ``shapes``: (colour, points) or (colour, (x, y, radius in m)); points, x and y are shares of the box.
    """
    scale = s.focal / z
    w, h = int(width * scale) + 1, int(height * scale) + 1
    if h < 5 or h > 3 * s.h:
        return
    patch, mask = np.zeros((h, w, 3), np.float32), np.zeros((h, w), np.uint8)
    for colour, points in shapes:
        points = np.array(points, np.float32)
        for canvas, value in ((patch, [float(c) for c in colour]), (mask, 1)):
            if points.ndim == 1:
                centre = int(points[0] * w), int(points[1] * h)
                cv2.circle(canvas, centre, max(int(points[2] * scale), 1), value, -1)
            else:
                cv2.fillPoly(canvas, [np.int32(np.round(points * (w - 1, h - 1)))], value)
    x, y = s.at(u, 0, z)
    patch *= (0.75 + 0.35 * s.noise(h, w, 0.5) + 0.2 * (0.5 - np.linspace(0, 1, h)[:, None]))[..., None]
    s.shadow(x, y, w * 0.6, max(w * 0.12, 2))
    s.paste(patch, mask > 0, x - w / 2, y - h + 1, name, z)


def box(x0: float, y0: float, x1: float, y1: float) -> tuple:
    """Build the polygon of a rectangle."""
    return (x0, y0), (x1, y0), (x1, y1), (x0, y1)


def draw_car(s: Scene, u: float, z: float) -> None:
    """Draw a car or van from the side or from behind."""
    rng, paint = s.rng, s.colour(PAINTS[s.rng.integers(len(PAINTS))])
    glass, tyre = np.array((0.16, 0.20, 0.25)) + s.zenith * 0.2, (0.06, 0.06, 0.07)
    if rng.random() < 0.5:
        high = rng.uniform(1.4, 2.2)
        lamp = (0.85, 0.1, 0.08) if rng.random() < 0.6 else (0.98, 0.95, 0.8)
        draw_shapes(
            s,
            u,
            z,
            1.8,
            high,
            'car',
            [
                (tyre, box(0.06, 0.75, 0.24, 1)),
                (tyre, box(0.76, 0.75, 0.94, 1)),
                (
                    paint,
                    (
                        (0.14, 0.06),
                        (0.24, 0),
                        (0.76, 0),
                        (0.86, 0.06),
                        (0.98, 0.46),
                        (1, 0.86),
                        (0, 0.86),
                        (0.02, 0.46),
                    ),
                ),
                (glass, ((0.22, 0.1), (0.78, 0.1), (0.86, 0.42), (0.14, 0.42))),
                (lamp, box(0.04, 0.5, 0.18, 0.62)),
                (lamp, box(0.82, 0.5, 0.96, 0.62)),
                ((0.9, 0.9, 0.85), box(0.38, 0.62, 0.62, 0.72)),
            ],
        )
    else:
        back, nose = rng.uniform(0.02, 0.25), rng.uniform(0.68, 0.9)
        cabin = [(back, 0.45), (back + 0.1, 0.03), (nose - 0.2, 0), (nose, 0.45)]
        panes = [(back + 0.06, 0.42), (back + 0.13, 0.1), (nose - 0.22, 0.1), (nose - 0.06, 0.42)]
        shapes = [
            (paint, cabin),
            (glass, panes),
            (paint, box(0.44, 0.05, 0.48, 0.45)),
            (paint, ((0, 0.5), (0.04, 0.42), (0.9, 0.42), (1, 0.56), (1, 0.84), (0, 0.84))),
            (tyre, (0.2, 0.82, 0.32)),
            (tyre, (0.8, 0.82, 0.32)),
            ((0.5, 0.5, 0.52), (0.2, 0.82, 0.15)),
            ((0.5, 0.5, 0.52), (0.8, 0.82, 0.15)),
        ]
        if rng.random() < 0.5:
            shapes = [
                (colour, (1 - points[0], *points[1:]) if np.ndim(points) == 1 else [(1 - x, y) for x, y in points])
                for colour, points in shapes
            ]
        draw_shapes(s, u, z, rng.uniform(3.8, 4.8), rng.uniform(1.35, 1.7), 'car', shapes)


def draw_person(s: Scene, u: float, z: float) -> None:
    """Draw a standing or walking person."""
    rng = s.rng
    skin = s.colour(((0.86, 0.68, 0.55), (0.62, 0.44, 0.32), (0.38, 0.26, 0.20))[rng.integers(3)])
    coat, legs = (s.colour(PAINTS[rng.integers(len(PAINTS))], 0.1) for _ in range(2))
    step, height = rng.uniform(0, 0.28), rng.uniform(1.5, 1.9)
    draw_shapes(
        s,
        u,
        z,
        0.75,
        height,
        'person',
        [
            (legs, ((0.34, 0.5), (0.54, 0.5), (0.46 - step, 1), (0.26 - step, 1))),
            (legs, ((0.48, 0.5), (0.68, 0.5), (0.76 + step, 1), (0.56 + step, 1))),
            (
                coat,
                (
                    (0.28, 0.17),
                    (0.72, 0.17),
                    (0.92, 0.52),
                    (0.74, 0.56),
                    (0.72, 0.6),
                    (0.28, 0.6),
                    (0.24, 0.56),
                    (0.08, 0.52),
                ),
            ),
            (skin, (0.5, 0.085, height * 0.075)),
            (s.colour((0.2, 0.15, 0.1), 0.06), ((0.40, 0.06), (0.44, 0), (0.56, 0), (0.60, 0.06))),
        ],
    )


def draw_pole(s: Scene, u: float, z: float) -> None:
    """Draw a street lamp, a sign or a wooden post."""
    rng, thick = s.rng, s.rng.uniform(0.14, 0.3)
    metal = s.colour(((0.35, 0.36, 0.38), (0.62, 0.63, 0.64), (0.38, 0.29, 0.20), (0.16, 0.18, 0.17))[rng.integers(4)])
    kind = rng.integers(3)
    if kind == 0:
        bulb = np.array((1.0, 0.93, 0.7)) / (s.light if s.light_name == 'night' else 1)
        width, height, half = 2.2, rng.uniform(4, 6.5), thick / 4.4
        more = [(metal, box(0.5, 0, 0.95, 0.03)), (bulb, box(0.75, 0.03, 0.97, 0.06))]
    elif kind == 1:
        face = s.colour(((0.80, 0.15, 0.12), (0.15, 0.30, 0.70), (0.92, 0.80, 0.20))[rng.integers(3)])
        width, height, half = 0.9, rng.uniform(2.3, 3.2), thick / 2.4
        more = [((0.93, 0.93, 0.93), (0.5, 0.16, 0.42)), (face, (0.5, 0.16, 0.34))]
    else:
        width, height, half = 1.6, rng.uniform(4, 7), thick / 3.2
        more = [(metal, box(0, 0.07, 1, 0.1)), (metal, box(0.12, 0.15, 0.88, 0.18))]
    draw_shapes(s, u, z, width, height, 'pole', [(metal, box(0.5 - half, 0, 0.5 + half, 1)), *more])


def draw_fence(s: Scene, u: float, z: float) -> None:
    """Draw a picket fence along the road or across the view, with gaps between the pickets."""
    rng, length, height = s.rng, s.rng.uniform(5, 18), s.rng.uniform(0.8, 1.5)
    paint = s.colour(((0.88, 0.87, 0.84), (0.48, 0.36, 0.25), (0.34, 0.34, 0.36), (0.58, 0.50, 0.40))[rng.integers(4)])
    along = rng.random() < 0.4
    pitch, solid = rng.uniform(0.22, 0.45), rng.uniform(0.55, 0.85)
    for k in range(int(length / pitch)):
        a, b = k * pitch, k * pitch + pitch * solid
        near, far = ((u, z + b), (u, z + a)) if along else ((u + a, z), (u + b, z))
        (ua, za), (ub, zb) = near, far
        tip = height * (1 + 0.08 * (k % 2))
        s.quad(
            np.tile(paint, (8, 4, 1)),
            [s.at(ua, tip, za), s.at(ub, tip, zb), s.at(ub, 0, zb), s.at(ua, 0, za)],
            'fence',
            z,
        )
    ends = ((u, z + length), (u, z)) if along else ((u, z), (u + length, z))
    for low in (0.25, 0.65):
        corners = (0, low + 0.12), (1, low + 0.12), (1, low), (0, low)
        rail = [s.at(ends[i][0], y * height, ends[i][1]) for i, y in corners]
        s.quad(np.tile(paint * 0.9, (4, 8, 1)).astype(np.float32), rail, 'fence', z)


def draw_rock(s: Scene, u: float, z: float) -> None:
    """Draw a boulder, which has no class: its pixels are unlabelled."""
    size = s.rng.uniform(0.4, 1.4)
    angle = np.linspace(0, 2 * np.pi, 9)[:-1]
    reach = s.rng.uniform(0.35, 0.5, 8)
    outline = np.stack([0.5 + reach * np.cos(angle), 0.55 + reach * np.sin(angle)], 1)
    draw_shapes(s, u, z, size * 1.4, size, None, [(s.colour((0.48, 0.46, 0.44)), outline)])


def place(s: Scene) -> list[tuple]:
    """Place the objects on the ground: a list of (z, draw, u), from far to near."""
    rng, kind, things = s.rng, s.kind, []
    nearest = s.camera * s.focal / (s.h - s.horizon)  # what stands closer has its feet below the picture

    def add(draw, count, reach, spot):
        for _ in range(rng.integers(count[0], count[1] + 1)):
            z = nearest * np.exp(rng.uniform(*np.log(reach)))
            things.append((z, draw, spot(z)))

    def beside(z):
        """Draw a random position in view beside the road."""
        half = s.w / 2 / s.focal * z
        u = (s.w / 2 - s.vanish) * z / s.focal - s.bend * z * z + rng.uniform(-1, 1) * half
        clear = s.road + 0.8
        return u if abs(u) > clear else np.copysign(clear + rng.uniform(0, 2), u)

    for out in (-1, 1):
        z, u = nearest * rng.uniform(0.8, 2.5), s.road + rng.uniform(1.5, 5)
        for _ in range(rng.integers(*kind['blocks'], endpoint=True)):
            things.append((z, draw_building, out * (u + rng.uniform(0, 2))))
            z += rng.uniform(12, 22)
    add(draw_building, kind['skyline'], (6, 25), beside)
    add(draw_tree, kind['trees'], (1, 12), beside)
    lane = lambda z: rng.choice((-0.5, 0.5)) * s.road
    add(draw_car, kind['cars'], (1.1, 6), lane if s.road else beside)
    add(draw_person, kind['people'], (1.02, 3.5), lambda z: beside(z) if rng.random() < 0.75 or not s.road else lane(z))
    kerb = lambda z: np.copysign(s.road + rng.uniform(0.5, 1.5), rng.normal()) if s.road else beside(z)
    add(draw_pole, kind['poles'], (1.05, 4.5), kerb)
    add(draw_fence, kind['fences'], (1.2, 3), beside)
    add(draw_rock, (0, 3), (1, 4), beside)
    return sorted(things, key=lambda thing: -thing[0])
