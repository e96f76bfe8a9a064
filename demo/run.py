"""Compare a trained Segmenter with all tokens and with fewer on drawn scenes, and draw pictures."""

import argparse
import copy
import logging
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn

from mmtr.analysis.compare import compare_on_test_data
from mmtr.analysis.flops import count_flops, schedule_in_words
from mmtr.analysis.speed import machine
from mmtr.errors import command
from mmtr.inference.model import build_model, load_weights
from mmtr.visualization import draw_groups, draw_injected, draw_matches, group_legend, marked, mosaic, token_maps
from mmtr.words import aligned_rows

ROOT = Path(__file__).parents[1]
PLAIN = 'configs/segmenter_vit_demo.py'
# The paper's setting, and the one chosen on training scenes: see "The demo" in docs/benchmarks.md.
PAPERS, OURS = 'configs/segmenter_vit_tadapter_demo.py', 'configs/segmenter_vit_tadapter_demo-fast.py'
CHECKPOINT = 'demo/segmenter_vit_demo.pth'


def painted(image: np.ndarray, labels: np.ndarray, palette: list) -> np.ndarray:
    """Paint an image by its label map; pixels without a class stay as they are."""
    colors = np.array(palette, np.uint8)
    known = labels < len(colors)
    out = image.copy()
    out[known] = (0.4 * image[known] + 0.6 * colors[labels[known]]).astype(np.uint8)
    return out


def picture(model: nn.Module, reductions: dict, batch: dict, palette: list) -> np.ndarray:
    """Draw one image, its labels, the first and last prediction, and the last token map (Fig. 5 of the paper)."""
    sample = batch['data_samples'][0]
    image = batch['inputs'][0].permute(1, 2, 0).numpy()[..., ::-1].copy()
    predicted = {}
    first, last = list(reductions)[0], list(reductions)[-1]
    for name in (first, last):
        model.backbone.set_token_reduction(reductions[name])
        predicted[name] = model.test_step(copy.deepcopy(batch))[0].pred_sem_seg.data[0].numpy()
    inputs = model.data_preprocessor(copy.deepcopy(batch))['inputs']
    token_map = list(token_maps(model.backbone, inputs).values())[-1][0]
    patch = model.backbone.patch_size
    return mosaic(
        [
            [
                ('image', image),
                ('ground truth', painted(image, sample.gt_sem_seg.data[0].numpy(), palette)),
                *[(f'prediction, {name}', painted(image, labels, palette)) for name, labels in predicted.items()],
            ],
            [
                (group_legend([token_map]), draw_groups(image, token_map, patch)),
                ('one colour: share a token, that of the dot', draw_matches(image, token_map, patch)),
                ('mean colour of each token', draw_injected(image, token_map, patch)),
                ('differs between the predictions', marked(image, predicted[first] != predicted[last])),
            ],
        ]
    )


@command
def main() -> None:
    """Draw, measure, print one table, write pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--scenes', type=int, default=100, help='how many images to test on')
    parser.add_argument('--pictures', type=int, default=6, help='how many of them to picture')
    parser.add_argument('--data', type=Path, default=ROOT / 'demo/data/scenes', help='where to draw them')
    parser.add_argument('--out', type=Path, default=ROOT / 'demo/output', help='where to write the pictures')
    args = parser.parse_args()
    print('[1/3] Drawing the scenes to test on', flush=True)
    subprocess.run(
        [sys.executable, ROOT / 'demo/draw_scenes.py', '--train', '0', '--val', str(args.scenes), '--out', args.data],
        check=True,
    )
    print('[2/3] Testing the Segmenter on them, plain and with Token Adapter, in turns', flush=True)
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)
    cfg, papers, ours = (Config.fromfile(ROOT / path) for path in (PLAIN, PAPERS, OURS))
    cfg.test_dataloader.dataset.data_root = str(args.data)
    init_default_scope('mmseg')
    model = build_model(cfg)
    load_weights(model, ROOT / CHECKPOINT)
    reductions = {
        'plain': None,
        'Token Adapter, paper': papers.model.backbone.token_reduction,
        'Token Adapter, ours': ours.model.backbone.token_reduction,
    }
    results = compare_on_test_data(cfg, model, reductions)
    print_table(model, reductions, results)

    print(f'\n[3/3] Writing pictures to {args.out}')
    args.out.mkdir(parents=True, exist_ok=True)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    with torch.inference_mode():
        for step, batch in zip(range(args.pictures), loader):
            drawn = picture(model, reductions, batch, loader.dataset.metainfo['palette'])
            cv2.imwrite(str(args.out / f'scene_{step}.png'), drawn[..., ::-1])
    print(
        '\nThe same by the tools:\n'
        f'  python tools/test.py {PLAIN} {CHECKPOINT}\n  python tools/test.py {OURS} {CHECKPOINT}'
    )


def print_table(model: nn.Module, reductions: dict, results: dict) -> None:
    """Print accuracy, speed, GFLOPs and tokens of each reduction, at the demo's main image size."""
    width, height = 512, 384
    patch = model.backbone.patch_size
    rows = [('', 'mIoU', 'pixel acc.', 'ms/image', 'images/s', 'speed-up', 'GFLOPs', 'patch tokens in each layer')]
    for name, result in results.items():
        model.backbone.set_token_reduction(reductions[name])
        gflops = count_flops(model, torch.zeros(1, 3, height, width)).total / 1e9
        schedule = model.backbone.token_reducer.token_schedule(
            (height // patch, width // patch), len(model.backbone.layers)
        )
        rows.append(
            (
                name,
                f'{result["metrics"]["mIoU"]:.2f}',
                f'{result["metrics"]["aAcc"]:.2f}',
                f'{result["total_ms"]:.1f}',
                f'{1e3 / result["total_ms"]:.1f}',
                f'{results["plain"]["total_ms"] / result["total_ms"]:.2f}x',
                f'{gflops:.2f}',
                schedule_in_words(schedule),
            )
        )
    print(aligned_rows(rows, words=(0, 7)))
    used = machine()
    print(
        f'Times: median over the images, of the whole test step. GFLOPs: multiply-adds at {width}x{height}.\n'
        f'Machine: {used["cpu"]}, {used["threads"]} threads, torch {used["torch"]}.'
    )


if __name__ == '__main__':
    main()
