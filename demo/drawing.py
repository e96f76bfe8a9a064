"""The command line of the scripts that draw a data set, and the writing of its folder."""

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
from typing import Callable


def draw_data_set(
    description: str,
    what: str,
    version: int,
    counts: tuple[int, int],
    folders: Callable,
    write: Callable,
    finish: Callable = lambda root, results: None,
) -> None:
    """Run the command line of a script that draws training and validation images into a folder.

    It does not import mmtr, which would take longer than the drawing, in each process.

    Args:
        description: First line of the help.
        what: Plural noun for what is drawn, and name of its folder in demo/data.
        version: Version of the drawing; data of another version are drawn again.
        counts: Default numbers of training and validation images.
        folders: Function of a split, ``training`` or ``validation``, that names the folders of its images.
        write: Function (root, (split, number of the split, index, seed)) of a module that draws and writes an image.
        finish: Function (root, what ``write`` returned of all images) that writes what is left.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--out', type=Path, default=Path('demo/data') / what)
    parser.add_argument('--train', type=int, default=counts[0], help='training images')
    parser.add_argument('--val', type=int, default=counts[1], help='validation images')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if min(args.train, args.val, args.seed) < 0:
        parser.exit(2, 'Error: --train, --val and --seed must not be negative.\n')

    counts = {'training': args.train, 'validation': args.val}
    settings = dict(version=version, seed=args.seed, **counts)
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
    work = Path(tempfile.mkdtemp(prefix=f'.{what}-', dir=args.out.parent))
    try:
        for split in counts:
            for folder in folders(split):
                (work / folder).mkdir(parents=True)
        jobs = [(split, k, i, args.seed) for k, (split, n) in enumerate(counts.items()) for i in range(n)]
        print(f'drawing {len(jobs)} {what} into {args.out}', flush=True)
        # Spawn: a fork of a process with threads, of OpenCV or torch, can hang.
        with ProcessPoolExecutor(max_workers=os.cpu_count(), mp_context=get_context('spawn')) as pool:
            results = list(pool.map(partial(write, work), jobs, chunksize=16))
        finish(work, results)
        (work / 'stamp.json').write_text(json.dumps(settings))
        work.chmod(0o755)
        shutil.rmtree(args.out, ignore_errors=True)
        work.rename(args.out)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        shutil.rmtree(work, ignore_errors=True)
