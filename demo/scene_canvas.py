"""The canvas that demo/draw_scenes.py paints on, and the land: sky, hills, ground, water, road.

Lengths in the scene are metres, seen by a pinhole camera; colours are RGB in 0..1.
"""
import cv2
import numpy as np

CLASSES = ('sky', 'hill', 'building', 'road', 'grass', 'earth', 'tree', 'water', 'car', 'person', 'pole',
           'fence')
LABELS = {name: i + 1 for i, name in enumerate(CLASSES)}
SIZES = ((512, 384), (512, 384), (512, 384), (512, 384), (480, 360), (576, 384), (448, 448))  # (W, H), px

# What each kind of scene holds: chances, or (least, most) counts.
KINDS = {
    'street': dict(hills=.3, road=1., water=0., blocks=(3, 9), skyline=(2, 6), trees=(1, 8), cars=(2, 6),
                   people=(2, 8), poles=(2, 5), fences=(0, 1)),
    'village': dict(hills=.7, road=.8, water=.1, blocks=(1, 5), skyline=(0, 3), trees=(4, 12), cars=(0, 3),
                    people=(1, 5), poles=(1, 5), fences=(1, 3)),
    'country': dict(hills=.9, road=.5, water=.3, blocks=(0, 1), skyline=(0, 2), trees=(5, 16), cars=(0, 2),
                    people=(0, 3), poles=(0, 4), fences=(1, 3)),
    'shore': dict(hills=.8, road=.15, water=1., blocks=(0, 2), skyline=(0, 5), trees=(2, 9), cars=(0, 2),
                  people=(1, 6), poles=(0, 3), fences=(0, 2)),
}
# Sky at the zenith, sky at the horizon, light, distance in m at which haze takes 63%, chance.
LIGHTS = {
    'day': ((.25, .48, .82), (.78, .87, .95), (1., 1., .97), 420, .38),
    'cloudy': ((.58, .62, .68), (.80, .81, .82), (.82, .84, .88), 300, .22),
    'dusk': ((.32, .27, .48), (.98, .66, .40), (.88, .68, .60), 260, .18),
    'fog': ((.74, .76, .78), (.82, .83, .84), (.86, .87, .88), 60, .10),
    'night': ((.05, .07, .16), (.22, .22, .34), (.44, .48, .62), 300, .12),
}


class Scene:
    """One picture being painted from far to near: ``rgb`` (H, W, 3) and ``label`` (H, W), 0 unlabelled."""

    def __init__(self, rng, size):
        self.rng, (self.w, self.h) = rng, size
        self.rgb = np.zeros((self.h, self.w, 3), np.float32)
        self.label = np.zeros((self.h, self.w), np.uint8)
        self.tile = sum(cv2.resize(rng.random((2 ** k, 2 ** k), np.float32), (512, 512),
                                   interpolation=cv2.INTER_CUBIC) * .62 ** k for k in range(2, 9))
        self.tile = np.clip((self.tile - self.tile.mean()) / self.tile.std() * .22 + .5, 0, 1)
        self.kind = KINDS[rng.choice(list(KINDS))]
        self.light_name = rng.choice(list(LIGHTS), p=[light[-1] for light in LIGHTS.values()])
        zenith, horizon, light, self.clear, _ = LIGHTS[self.light_name]
        self.zenith, self.haze = (np.array(c, np.float32) + rng.normal(0, .02, 3) for c in (zenith, horizon))
        self.light = np.array(light, np.float32) * rng.uniform(.88, 1.08)
        self.focal = self.w * rng.uniform(.65, 1.0)
        self.camera = rng.uniform(1.5, 4.5)
        self.horizon = int(self.h * rng.uniform(.28, .6))
        self.vanish = self.w * rng.uniform(.3, .7)
        self.bend = rng.normal(0, .006)
        self.road = 0.

    def colour(self, base, spread=.05):
        """``base`` (3,) with its brightness and hue moved at random."""
        moved = np.array(base) * self.rng.uniform(1 - 3 * spread, 1 + 3 * spread)
        return np.clip(moved + self.rng.normal(0, .6 * spread, 3), .02, 1).astype(np.float32)

    def noise(self, h, w, zoom=1.):
        """(h, w) fractal noise in 0..1; ``zoom`` above 1 makes it coarser."""
        y, x = (self.rng.integers(0, 1024) + (np.arange(n) / zoom).astype(int) for n in (h, w))
        fold = lambda i: np.minimum(i % 1024, 1023 - i % 1024)
        return self.tile[fold(y)[:, None], fold(x)]

    def far(self, z):
        """Share of haze in what stands z m away."""
        return 1 - np.exp(-np.asarray(z, np.float32) / self.clear)

    def at(self, u, y, z):
        """Pixel of the point u m right of the road's middle at the camera, y m up and z m away."""
        return (self.vanish + (u + self.bend * z * z) * self.focal / z,
                self.horizon + (self.camera - y) * self.focal / z)

    def paste(self, patch, mask, left, top, name, z):
        """Lays ``patch`` (h, w, 3) where ``mask`` holds; ``name`` None: without a label."""
        left, top = int(round(left)), int(round(top))
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + mask.shape[1], self.w), min(top + mask.shape[0], self.h)
        if x0 >= x1 or y0 >= y1:
            return
        part = np.s_[y0 - top:y1 - top, x0 - left:x1 - left]
        mask, patch, fog = mask[part], patch[part], self.far(z)
        self.rgb[y0:y1, x0:x1][mask] = (patch * self.light * (1 - fog) + self.haze * fog)[mask]
        self.label[y0:y1, x0:x1][mask] = LABELS.get(name, 0)

    def quad(self, texture, corners, name, z):
        """Lays ``texture`` onto the four ``corners`` (px), clockwise from the upper left."""
        corners = np.array(corners, np.float32)
        x0, y0 = np.maximum(np.floor(corners.min(0)).astype(int), 0)
        x1, y1 = np.minimum(np.ceil(corners.max(0)).astype(int) + 1, (self.w, self.h))
        if x0 >= x1 or y0 >= y1:
            return
        h, w = texture.shape[:2]
        move = cv2.getPerspectiveTransform(
            np.array([(0, 0), (w, 0), (w, h), (0, h)], np.float32), corners - np.float32((x0, y0)))
        size = int(x1 - x0), int(y1 - y0)
        patch = cv2.warpPerspective(texture, move, size, borderMode=cv2.BORDER_REPLICATE)
        mask = cv2.fillConvexPoly(np.zeros(size[::-1], np.uint8), np.int32(np.round(corners - (x0, y0))), 1)
        patch = patch * (.85 + .3 * self.noise(size[1], size[0], .5))[..., None]
        self.paste(patch, mask > 0, x0, y0, name, z)

    def shadow(self, x, y, rx, ry):
        """Darkens the ground around (x, y) px."""
        x0, y0 = int(max(x - rx, 0)), int(max(y - ry, 0))
        x1, y1 = int(min(x + rx, self.w)), int(min(y + ry, self.h))
        if x0 < x1 and y0 < y1:
            gy, gx = np.mgrid[y0:y1, x0:x1]
            near = np.clip(1 - ((gx - x) / rx) ** 2 - ((gy - y) / ry) ** 2, 0, 1)
            self.rgb[y0:y1, x0:x1] *= 1 - .45 * near[..., None].astype(np.float32)


def draw_sky(s):
    """Gradient, sun or moon, clouds or stars."""
    h, w, rng = s.horizon + 2, s.w, s.rng
    t = np.linspace(0, 1, h, dtype=np.float32)[:, None, None] ** rng.uniform(.7, 1.6)
    sky = s.zenith * (1 - t) + s.haze * t + np.zeros((h, w, 1), np.float32)
    if s.light_name != 'fog' and rng.random() < .55:
        x, y, r = rng.uniform(0, w), rng.uniform(.1, .9) * h, rng.uniform(7, 18)
        gy, gx = np.ogrid[:h, :w]
        d = np.sqrt((gx - x) ** 2 + (gy - y) ** 2).astype(np.float32)[..., None]
        disc = np.array((.95, .95, .88) if s.light_name == 'night' else (1., .95, .75), np.float32)
        glow = np.clip(r + 1 - d, 0, 1) + .45 * np.exp(-d / (5 * r))
        sky += (disc - sky) * np.minimum(glow, 1)
    if s.light_name == 'night':
        sky += (rng.random((h, w, 1), np.float32) > .9985) * .6
    clouds = cv2.resize(s.noise(h, w, rng.uniform(.6, 1.2)), (w, h))
    clouds = cv2.GaussianBlur(clouds, (0, 0), 1.2)[..., None]
    cover = rng.uniform(.42, .85) if s.light_name != 'cloudy' else rng.uniform(.25, .45)
    white = np.clip(s.haze * .6 + .42 * s.light, 0, 1) * (1 - .35 * np.clip(clouds - cover - .1, 0, 1) * 2)
    sky += (white - sky) * np.clip((clouds - cover) * 4, 0, .9) * (1 - .5 * t)
    s.rgb[:h], s.label[:h] = sky, LABELS['sky']


def draw_hills(s):
    """One to three ranges of mountains or wooded hills, hazier the farther."""
    rng, x = s.rng, np.arange(s.w)
    for z in np.sort(rng.uniform(90, 700, rng.integers(1, 4)))[::-1]:
        rough = rng.uniform(.35, .62)
        ridge = sum(np.interp(x, np.linspace(0, s.w, 3 * 2 ** k), rng.random(3 * 2 ** k)) * rough ** k
                    for k in range(6))
        ridge = (ridge - ridge.min()) / np.ptp(ridge)
        height = s.horizon * rng.uniform(.12, .8) * (.5 + z / 1400)
        top = (s.horizon - height * (.25 + .75 * ridge)).astype(int)
        y0 = max(top.min(), 0)
        y = np.arange(y0, s.horizon + 2)[:, None]
        n = s.noise(len(y), s.w, rng.uniform(.4, 1.))[..., None]
        base = s.colour(((.30, .38, .20), (.42, .38, .34), (.22, .30, .22), (.48, .42, .30))[rng.integers(4)])
        # Light from one side: the noise's slope shades the rock.
        relief = np.clip((n - np.roll(n, 3, 1)) * 4, -.4, .4)
        patch = base * (.6 + .8 * n + relief)
        if z > 350 and rng.random() < .6:
            snow = (y - top)[..., None] < s.horizon * .16 * n * 2
            patch = np.where(snow, np.float32((.93, .94, .97)) * (.9 + relief * .6), patch)
        s.paste(patch.astype(np.float32), y >= top, 0, y0, 'hill', z)


def draw_ground(s):
    """Grass and earth in fields, water and the road, all in perspective."""
    rng, top = s.rng, s.horizon + 1
    gy, gx = np.mgrid[top:s.h, :s.w].astype(np.float32)
    z = np.minimum(s.camera * s.focal / (gy - s.horizon), 900)
    u = (gx - s.vanish) * z / s.focal - s.bend * z * z
    fade = np.exp(-z / 60)  # noise finer than a pixel would shimmer

    def plane(a, b, shift=0):
        return cv2.remap(s.tile, np.float32((u * a + shift) % 1024), np.float32((z * b + shift) % 1024),
                         cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)

    offset = rng.uniform(0, 1000)
    detail, coarse = plane(31, 23, offset) * fade + .5 * (1 - fade), plane(1.3, 1.1, offset)
    grass = s.colour(((.33, .47, .17), (.45, .48, .22), (.58, .55, .28))[rng.choice(3, p=(.55, .3, .15))])
    earth = s.colour(((.56, .45, .32), (.74, .66, .50), (.42, .34, .27), (.52, .50, .47))[rng.integers(4)])
    blades = .5 + .6 * detail + .5 * s.noise(len(gy), s.w, .4) * fade
    pebbles = (s.noise(len(gy), s.w, .35) - .5) * fade
    grain = .72 + .3 * detail + .25 * coarse + .3 * pebbles
    if rng.random() < .4:
        grain += .10 * np.sin(u * rng.uniform(3, 7)) * fade  # ploughed
    if rng.random() < .4:
        edge = rng.uniform(-30, 30) + rng.uniform(-1, 1) * z
        bare = (u > edge) ^ (coarse > .72)
    else:
        bare = coarse > rng.uniform(.35, .75)
    if s.kind['road'] == 1.:
        bare |= rng.random() < .3
    patch = np.where(bare[..., None], earth * grain[..., None], grass * blades[..., None])
    label = np.where(bare, LABELS['earth'], LABELS['grass'])
    fog = s.far(z)[..., None]
    patch = patch * s.light * (1 - fog) + s.haze * fog

    if rng.random() < s.kind['water']:
        wobble = (coarse - .5) * rng.uniform(1, 3)
        row = (gy - top) / (s.h - top)
        far, near = (-1., rng.uniform(.15, .7)), (rng.uniform(.3, .6), 2.)  # a sea, the shore in front
        river = rng.uniform(.05, .25), rng.uniform(.35, .7)
        low, high = (far, near, river)[rng.integers(3)]
        shift = wobble * .12 + (gx / s.w - .5) * rng.normal(0, .25)
        wet = (row + shift > low) & (row + shift < high)
        ripple = plane(6, 60, offset + 77) - .5
        back = np.clip(2 * s.horizon - gy - 1 + ripple * 26 * row, 0, s.horizon)
        mirror = cv2.remap(s.rgb, np.float32(gx + ripple * 10), np.float32(back), cv2.INTER_LINEAR,
                           borderMode=cv2.BORDER_REFLECT)
        deep = s.colour((.16, .30, .36)) * s.light
        share = np.clip(.75 - .45 * row, .2, .8)[..., None]
        sea = mirror * share + deep * (1 - share) + (ripple * .35 * np.minimum(fade + .3, 1))[..., None]
        patch = np.where(wet[..., None], sea, patch)
        label = np.where(wet, LABELS['water'], label)

    if rng.random() < s.kind['road']:
        s.road = rng.uniform(2.4, 5.5)
        paved = rng.random() < .8
        tar = s.colour((.36, .36, .38) if paved else (.60, .50, .37), .03)
        tar = tar * (.80 + .25 * detail + .15 * coarse + .2 * pebbles)[..., None]
        if paved:
            marks = (np.abs(u) < .09) & (z % 6 < 3)
            if rng.random() < .7:
                marks |= np.abs(np.abs(u) - s.road + .3) < .07
            tar[marks] = (.88, .88, .84)
        else:
            tar *= 1 - .2 * np.exp(-((np.abs(u) - s.road * .45) / .35) ** 2)[..., None]
        on = (np.abs(u) < s.road + (0 if paved else (coarse - .5))) & (z < 400)
        patch = np.where(on[..., None], tar * s.light * (1 - fog) + s.haze * fog, patch)
        label = np.where(on, LABELS['road'], label)
    s.rgb[top:], s.label[top:] = patch, label
