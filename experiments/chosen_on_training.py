"""Choose each method's setting on training images, and report its accuracy on validation images.

python experiments/chosen_on_training.py CONFIG CHECKPOINT REDUCTIONS.py SPEEDS.json [--by gflops] [--against METHOD]

REDUCTIONS.py is a file of tools/compare.py, and SPEEDS.json its result, from which the speed-up of the encoder is read,
or how many times fewer multiply-adds the encoder computes. For each speed the script chooses the setting of a method
with the best mIoU on some training images (evenly spaced, from the config's training folders, without augmentation). It
prints the mIoU on the config's test data, the difference from the plain model, and from the setting that is chosen of
each METHOD for the same speed, with 95 % intervals by a paired bootstrap over the images. Results of models are kept in
work_dirs/chosen_on_training.
"""

import argparse
import copy
import hashlib
import json
import logging
import sys
from pathlib import Path
from typing import Optional

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from mmtr.analysis.compare import build_evaluator
from mmtr.apis import apply_token_reduction
from mmtr.inference.model import build_model, load_weights

#: Columns of SPEEDS.json by which settings are matched, and their names in the table.
BY = dict(encoder_ms='encoder', gflops='GFLOPs')
FASTER = (1.2, 1.4, 1.7, 2.0, 2.5, 3.0)
KEPT = Path('work_dirs/chosen_on_training')


def loader_of(cfg: Config, split: str, images: int) -> DataLoader:
    """Build the dataloader of a split: 'training', ``images`` of them with the test pipeline; or the test data."""
    loader = copy.deepcopy(cfg.test_dataloader)
    loader.update(num_workers=0, persistent_workers=False)
    if split == 'training':
        loader.dataset.data_prefix = cfg.train_dataloader.dataset.data_prefix
        total = len(Runner.build_dataloader(loader).dataset)
        loader.dataset.indices = sorted({i * total // images for i in range(images)})
    return Runner.build_dataloader(loader)


def areas(cfg: Config, model: nn.Module, reduction: Optional[dict], split: str, loader: DataLoader) -> np.ndarray:
    """Count the pixels of intersection, union and label, (images, 3, classes); the result is stored in a file."""
    shapes = {name: list(value.shape) for name, value in model.state_dict().items()}
    key = json.dumps([reduction, split, len(loader.dataset), cfg.filename, sorted(shapes.items())], sort_keys=True)
    path = KEPT / f'{hashlib.sha1(key.encode()).hexdigest()}.npy'
    if not path.exists():
        apply_token_reduction(model, reduction)
        evaluator = build_evaluator(cfg.test_evaluator, loader.dataset.metainfo)
        with torch.inference_mode():
            for batch in loader:
                evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
        KEPT.mkdir(parents=True, exist_ok=True)
        np.save(path, np.stack([[image[i].numpy() for i in (0, 1, 3)] for image in evaluator.metrics[0].results]))
    return np.load(path)


def miou(areas: np.ndarray) -> np.ndarray:
    """Compute the mIoU in per cent from areas (..., images, 3, classes), without classes that occur nowhere."""
    intersect, union, _ = np.moveaxis(areas.sum(-3), -2, 0)
    with np.errstate(invalid='ignore'):
        return np.nanmean(intersect / union, -1) * 100


def interval(found: np.ndarray, plain: np.ndarray) -> tuple[float, float, float]:
    """Compute the difference of mIoU from plain, and its 95 % interval over 2000 bootstrap samples of the images."""
    drawn = np.random.default_rng(0).integers(len(plain), size=(2000, len(plain)))
    low, high = np.percentile(miou(found[drawn]) - miou(plain[drawn]), (2.5, 97.5))
    return miou(found) - miou(plain), low, high


def main() -> None:
    """Measure what is not stored yet, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ('config', 'checkpoint', 'reductions', 'speeds'):
        parser.add_argument(name)
    parser.add_argument('--images', type=int, default=120, help='training images')
    parser.add_argument('--by', choices=BY, default='encoder_ms', help='what settings are matched by')
    parser.add_argument('--against', nargs='*', default=[], metavar='METHOD', help='methods to compare with, too')
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    init_default_scope('mmseg')
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    model = build_model(cfg)
    load_weights(model, args.checkpoint)
    results = json.loads(Path(args.speeds).read_text())['results']
    faster = {name: results['plain'][args.by] / r[args.by] for name, r in results.items()}
    reductions = {'plain': None, **Config.fromfile(args.reductions).reductions}
    loaders = {split: loader_of(cfg, split, args.images) for split in ('training', 'validation')}

    def measured(split, name):
        found = areas(cfg, model, reductions[name], split, loaders[split])
        print(f'{split}, {len(found)} images: {name} {miou(found):.2f}', file=sys.stderr, flush=True)
        return found

    training = {name: miou(measured('training', name)) for name in reductions}
    plain = measured('validation', 'plain')
    print(f'plain: {training["plain"]:.2f} on training, {miou(plain):.2f} on validation images\n')
    methods = {}
    for name in reductions:
        if name != 'plain':
            methods.setdefault(name.split(' (')[0].rstrip('0123456789. '), []).append(name)

    def chosen(method, least):
        return max((name for name in methods[method] if faster.get(name, 0) >= least), key=training.get, default=None)

    heads = [
        'method',
        BY[args.by],
        'chosen',
        'training',
        'validation',
        *(f'from {each}' for each in ('plain', *args.against)),
    ]
    print(f'| {" | ".join(heads)} |\n|---|---:|---|---:|---:|{"---:|" * (1 + len(args.against))}')
    for method in methods:
        before = None
        for least in FASTER:
            best = chosen(method, least)
            if best not in (None, before):
                found = measured('validation', best)
                others = [None if each == method else chosen(each, least) for each in args.against]
                differences = [interval(found, plain)]
                differences += [each and interval(found, measured('validation', each)) for each in others]
                cells = ['{:+.2f} ({:+.2f} to {:+.2f})'.format(*each) if each else '' for each in differences]
                print(
                    f'| {method} | {faster[best]:.2f}x | {best.removeprefix(method).strip()} | {training[best]:.2f} | '
                    f'{miou(found):.2f} | {" | ".join(cells)} |',
                    flush=True,
                )
            before = best


main()
