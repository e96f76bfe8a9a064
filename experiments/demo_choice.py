"""Choose the demo's setting: the best on training scenes of those with at most 2 GFLOPs (1.4x in the whole test step).

python demo/draw_scenes.py --train 200
python demo/draw_scenes.py --seed 1 --train 0 --val 200 --out demo/data/scenes-1
python experiments/demo_choice.py

The chosen setting is then measured on the demo's own scenes and on 200 unseen ones. In brackets stand the difference
from plain, and its 95 % interval by a paired bootstrap over the images.
"""

import copy
import logging
from typing import Optional

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmtr.analysis.compare import build_evaluator
from mmtr.analysis.flops import count_flops
from mmtr.apis import apply_token_reduction
from mmtr.inference.model import build_model, load_weights

cfg = Config.fromfile('configs/segmenter_vit_demo.py')
cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
init_default_scope('mmseg')
MMLogger.get_instance('mmengine', log_level=logging.ERROR)
model = build_model(cfg)
load_weights(model, 'demo/segmenter_vit_demo.pth')
PAPER = Config.fromfile('configs/segmenter_vit_tadapter_demo.py').model.backbone.token_reduction
SETTINGS = {
    f'{layers} {ratio}': dict(type='TokenAdapter', layers=layers, ratio=ratio)
    for layers in ((4, 10), (2, 10), (1, 10))
    for ratio in (0.3, 0.4, 0.5, 0.6)
}


def areas(
    root: str, split: str, reductions: dict[str, Optional[dict]]
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Measure each reduction: pixels of intersection, union and label, (images, 3, classes); and GFLOPs."""
    loader = copy.deepcopy(cfg.test_dataloader)
    loader.dataset.update(data_root=root, indices=200)
    loader.dataset.data_prefix = dict(img_path=f'images/{split}', seg_map_path=f'annotations/{split}')
    loader = Runner.build_dataloader(loader)
    found, gflops = {}, {}
    for name, reduction in reductions.items():
        apply_token_reduction(model, reduction)
        gflops[name] = count_flops(model, torch.zeros(1, 3, 384, 512)).total / 1e9
        evaluator = build_evaluator(cfg.test_evaluator, loader.dataset.metainfo)
        with torch.inference_mode():
            for batch in loader:
                evaluator.process(data_samples=model.test_step(batch), data_batch=batch)
        found[name] = np.stack([[image[i].numpy() for i in (0, 1, 3)] for image in evaluator.metrics[0].results])
    return found, gflops


def accuracy(areas: np.ndarray) -> np.ndarray:
    """Compute (mIoU, pixel accuracy) in per cent from areas (..., images, 3, classes)."""
    intersect, union, label = np.moveaxis(areas.sum(-3), -2, 0)
    return np.stack([(intersect / union).mean(-1), intersect.sum(-1) / label.sum(-1)], -1) * 100


def report(root: str, split: str, reductions: dict[str, Optional[dict]]) -> dict[str, float]:
    """Print each reduction in comparison with plain; return the mIoU of those with at most 2 GFLOPs."""
    found, gflops = areas(root, split, reductions)
    images = len(found['plain'])
    drawn = np.random.default_rng(0).integers(images, size=(2000, images))
    fast = {}
    for name, each in found.items():
        difference = accuracy(each[drawn]) - accuracy(found['plain'][drawn])
        low, high = np.percentile(difference, (2.5, 97.5), axis=0)
        (miou, right), mean = accuracy(each), accuracy(each) - accuracy(found['plain'])
        print(
            f'{root} {split}, {images} images, {name}: {gflops[name]:.2f} GFLOPs, mIoU {miou:.2f} ({mean[0]:+.2f}, '
            f'{low[0]:+.2f} to {high[0]:+.2f}), pixels {right:.2f} ({mean[1]:+.2f}, {low[1]:+.2f} to {high[1]:+.2f})',
            flush=True,
        )
        if gflops[name] <= 2:
            fast[name] = miou
    return fast


DEMO, NEW = 'demo/data/scenes', 'demo/data/scenes-1'
BESIDE = {'plain': None, "the paper's": PAPER}
fast = report(DEMO, 'training', {**BESIDE, **SETTINGS})
chosen = max(fast, key=fast.get)
print(f'chosen: {chosen}')
for root in (DEMO, NEW):
    report(root, 'validation', {**BESIDE, chosen: SETTINGS[chosen]})
