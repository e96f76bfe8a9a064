"""Draw the demo's data set: small textured landscapes and streets in the folder layout of ADE20K."""

import argparse
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from scene_canvas import LABELS, SIZES, Scene, draw_ground, draw_hills, draw_sky
from scene_things import place

VERSION = 1  # stored with the data: raise it when the drawing changes, so that old data are drawn again


def draw_scene(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw the scene of a seed: return its image (H, W, 3) uint8 RGB and label map (H, W) uint8."""
    rng = np.random.default_rng(seed)
    s = Scene(rng, SIZES[rng.integers(len(SIZES))])
    draw_sky(s)
    if rng.random() < s.kind['hills']:
        draw_hills(s)
    draw_ground(s)
    for z, draw, u in place(s):
        x, y = (int(v) for v in s.at(u, 0, z))
        afloat = 0 <= x < s.w and s.horizon < y < s.h and s.label[y, x] == LABELS['water']
        if not afloat:
            draw(s, u, z)
    rgb = cv2.GaussianBlur(s.rgb, (0, 0), rng.uniform(0.4, 0.9))
    gy, gx = np.ogrid[-1 : 1 : s.h * 1j, -1 : 1 : s.w * 1j]
    rgb *= (1 - rng.uniform(0, 0.18) * (gx**2 + gy**2))[..., None].astype(np.float32)
    rgb = np.clip(rgb * rng.uniform(0.94, 1.06, 3).astype(np.float32), 0, 1) ** rng.uniform(0.85, 1.15)
    rgb += rng.standard_normal(rgb.shape, np.float32) * np.float32(rng.uniform(0.005, 0.03))
    return np.uint8(np.clip(rgb, 0, 1) * 255), s.label


def write_scene(root: Path, job: tuple) -> None:
    """Draw the scene of a job (split, number of the split, index, seed) and write it into the folder ``root``."""
    split, number, index, seed = job
    cv2.setNumThreads(1)
    image, label = draw_scene([seed, number, index])
    name = f'scene_{index:05d}'
    cv2.imwrite(str(root / 'images' / split / f'{name}.jpg'), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])
    cv2.imwrite(str(root / 'annotations' / split / f'{name}.png'), label)


def main() -> None:
    """Run the command line. It does not import mmtr, which would take longer than the drawing, in each process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--out', type=Path, default=Path('demo/data/scenes'))
    parser.add_argument('--train', type=int, default=2400, help='training images')
    parser.add_argument('--val', type=int, default=100, help='validation images')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if min(args.train, args.val, args.seed) < 0:
        parser.exit(2, 'Error: --train, --val and --seed must not be negative.\n')

    counts = {'training': args.train, 'validation': args.val}
    settings = dict(version=VERSION, seed=args.seed, **counts)
    stamp = args.out / 'stamp.json'
    drawn = json.loads(stamp.read_text()) if stamp.exists() else {}
    # Data with more training images than asked for are kept: their validation images are the same.
    if drawn == {**settings, 'training': max(args.train, drawn.get('training', 0))}:
        print(f'{args.out} is already drawn')
        return
    if args.out.exists() and not drawn:
        parser.exit(2, f"Error: '{args.out}' was not drawn by this command: name another folder with --out.\n")

    args.out.parent.mkdir(parents=True, exist_ok=True)
    # Draw into a temporary folder and rename it when complete, so that an interruption leaves no partial data.
    work = Path(tempfile.mkdtemp(prefix='.scenes-', dir=args.out.parent))
    try:
        for split in counts:
            for part in ('images', 'annotations'):
                (work / part / split).mkdir(parents=True)
        jobs = [(split, k, i, args.seed) for k, (split, n) in enumerate(counts.items()) for i in range(n)]
        print(f'drawing {len(jobs)} scenes into {args.out}', flush=True)
        # Spawn: a fork of a process with threads, of OpenCV or torch, can hang.
        with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context('spawn')) as pool:
            for _ in pool.map(partial(write_scene, work), jobs, chunksize=16):
                pass
        (work / 'stamp.json').write_text(json.dumps(settings))
        work.chmod(0o755)
        shutil.rmtree(args.out, ignore_errors=True)
        work.rename(args.out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == '__main__':
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
