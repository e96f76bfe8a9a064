"""Measure whether a ratio for each image, chosen by a cheap signal, beats one ratio for all: ... CONFIG CHECKPOINT.

The signal is the norm of the difference between tokens and those that stand for them, over the norm of the tokens, at
ratio 0.5. Images with the smallest signal get the higher ratio. For comparison, the same share of images is chosen at
random, and by the largest signal.
"""

import copy
import sys
from typing import Any

import numpy as np
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner

from mmtr.analysis.compare import build_evaluator
from mmtr.analysis.flops import count_flops
from mmtr.apis import apply_token_reduction
from mmtr.config.files import load_config
from mmtr.inference.model import build_model, load_weights
from mmtr.tokens import Tokens

config, checkpoint = sys.argv[1:]
cfg = load_config(config)
init_default_scope('mmseg')
cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
model = build_model(cfg)
load_weights(model, checkpoint)
loader = Runner.build_dataloader(cfg.test_dataloader)
reduced, signals = Tokens.reduced, []


def noted(before: Tokens, *args: Any) -> Tokens:
    """Reduce tokens as ``Tokens.reduced`` does, and record the signal of the image."""
    after = reduced(before, *args)
    signals.append(float((after.undo.residual.norm(dim=-1) / before.patches.norm(dim=-1)).mean()))
    return after


def miou(areas: np.ndarray) -> float:
    """Compute the mIoU in per cent from areas of intersection and union, (images, 2, classes)."""
    return float((areas[:, 0].sum(0) / areas[:, 1].sum(0)).mean() * 100)


Tokens.reduced = noted
areas, cost = {}, {}
for ratio in (0.3, 0.4, 0.5, 0.6):
    apply_token_reduction(model, dict(type='TokenAdapter', ratio=ratio, layers=(2, 12)))
    with torch.inference_mode():
        cost[ratio] = count_flops(model.backbone, torch.zeros(1, 3, 360, 480)).total / 1e9
    evaluator = build_evaluator(cfg.test_evaluator, loader.dataset.metainfo)
    signals.clear()
    with torch.inference_mode():
        for batch in loader:
            evaluator.process(data_samples=model.test_step(copy.deepcopy(batch)), data_batch=batch)
    areas[ratio] = np.stack([[image[0].numpy(), image[1].numpy()] for image in evaluator.metrics[0].results])
    print(f'all images at {ratio}: {cost[ratio]:.2f} GFLOPs, mIoU {miou(areas[ratio]):.2f}')
    if ratio == 0.5:
        signal = np.array(signals)
print(f'signal: {signal.min():.3f} to {signal.max():.3f}, mean {signal.mean():.3f}')
picks = dict(signal=signal, random=np.random.default_rng(0).random(len(signal)), reverse=-signal)
for high, low in ((0.6, 0.3), (0.6, 0.4), (0.5, 0.3)):
    for share in (0.33, 0.5, 0.67):
        for name, rank in picks.items():
            coarse = rank.argsort().argsort() < share * len(rank)
            mixed = np.where(coarse[:, None, None], areas[high], areas[low])
            gflops = coarse.mean() * cost[high] + (1 - coarse.mean()) * cost[low]
            print(f'{share:.0%} at {high}, others at {low}, by {name}: {gflops:.2f} GFLOPs, mIoU {miou(mixed):.2f}')
