"""Find the setting of every method whose multiply-adds of the backbone are nearest to a share of the plain one's.

Prints a line a method: the share that it reaches, and the config with that setting for tools/benchmark.py. Where the
number of tokens depends on the image, it is counted on a random image with random weights.

    python experiments/matched_settings.py configs/segmenter_vit-l_ade20k.py --shape 640 640
"""

import argparse
import functools
import logging
import math
import sys

import torch
from mmengine.logging import MMLogger

from mmtr.analysis.flops import count_flops
from mmtr.apis import apply_token_reduction
from mmtr.config.files import load_config
from mmtr.errors import UserError
from mmtr.inference.model import build_model

SHARES = [round(0.05 * i, 2) for i in range(1, 19)]
FEW = [round(0.0025 * i, 4) for i in range(1, 81)]
#: The setting with its values, from weak to strong, and what else is set.
METHODS = [
    ('TokenAdapter', 'ratio', SHARES, {}),
    ('TokenAdapter', 'ratio', SHARES, dict(score='max', restore='copy')),  # the paper's
    ('GridPool', 'ratio', SHARES, {}),
    ('Expediting', 'grid', SHARES[::-1], {}),
    ('EViT', 'keep_rate', SHARES[::-1], {}),
    ('ToMe', 'r', SHARES[:10], {}),
    ('ToMe', 'r', FEW, dict(mode='progressive')),
    ('ToMe', 'r', FEW, dict(mode='progressive', matching='energy')),  # PiToMe's
    ('ALGM', 'threshold', [0.999, 0.995, 0.99, 0.98, 0.96, 0.94, 0.92, 0.9, 0.88, 0.85, 0.8, 0.7, 0.5, 0.2, 0.0], {}),
    ('CubistMerge', 'ratio', SHARES[:10], {}),
    ('SegFormerPlusPlus', 'share', SHARES, {}),
    ('MPM', 'layers', [(8,), (5,), (2,), (5, 8), (2, 5), (2, 5, 8), (1, 2, 3), (0, 1, 2, 3)], {}),
    ('Cropr', 'r', FEW, dict(deploy=True)),
    ('DAR', 'target', SHARES[::-1], {}),
    ('Random', 'ratio', SHARES, {}),
]


def nearest(values, share_of, target):
    """Return the value whose share is nearest to ``target``, by bisection: shares fall from value to value."""
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (middle + 1, high) if share_of(values[middle]) > target else (low, middle)
    return min(values[max(low - 1, 0) : low + 1], key=lambda value: abs(share_of(value) - target))


def main():
    """Count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('--shape', nargs=2, type=int, required=True, metavar=('H', 'W'))
    parser.add_argument('--target', type=float, default=0.5, help='share of the multiply-adds')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    args = parser.parse_args()
    MMLogger.get_instance('mmengine', log_level=logging.ERROR)  # it would write between the lines
    torch.manual_seed(0)
    model = build_model(load_config(args.config), args.device)
    image = torch.randn(1, 3, *args.shape, device=args.device)

    def count(reduction):
        backbone = apply_token_reduction(model, reduction).to(args.device).backbone
        with torch.no_grad():
            backbone.token_reducer.calibrate(lambda: backbone(image))
        return count_flops(backbone, image).total

    plain = count(None)
    for method, key, values, settings in METHODS:

        @functools.cache
        def share_of(value):
            try:
                return count({'type': method, key: value, **settings}) / plain  # noqa: B023  used within the loop
            except UserError:  # more than there is
                return -math.inf

        value = nearest(values, share_of, args.target)
        words = ','.join(f'{k}={v!r}' for k, v in {'type': method, key: value, **settings}.items())
        words = words.replace("'", '"').replace(' ', '')
        print(f'{share_of(value):.3f}\t{args.config}@model.backbone.token_reduction=dict({words})', flush=True)


if __name__ == '__main__':
    sys.exit(main())
