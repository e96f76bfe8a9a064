"""Convert detectron2's ResNet of bottlenecks to mmdet's ``ResNet``; other sources use this."""

import re

import torch
from torch import Tensor

from mmtr.errors import UserError

from .vit import Table, depth, need

BLOCKS = {(3, 4, 6, 3): 50, (3, 4, 23, 3): 101, (3, 8, 36, 3): 152}
STATISTICS = ('weight', 'bias', 'running_mean', 'running_var')


def resnet_table(state: dict[str, Tensor], kind: str, source: str = '', target: str = '') -> tuple[Table, int]:
    """Build the table for ``rename`` of a ResNet, and find its depth (50, 101 or 152).

    Args:
        kind: Name of the source in errors.
        source, target: Prefixes of the old and the new keys.

    Raises:
        UserError: The ResNet has another depth, or weights are missing.
    """
    table, blocks = {}, tuple(depth(state, re.escape(source) + rf'res{i}\.(\d+)\.') for i in (2, 3, 4, 5))
    if blocks not in BLOCKS:
        raise UserError(
            f'The ResNet in the file has {blocks} blocks, which is none of depth '
            f'{", ".join(map(str, BLOCKS.values()))}.'
        )

    def add(old, conv, norm):
        kernel = need(state, f'{source}{old}.weight', kind)
        table[f'{source}{old}.weight'] = (f'{target}{conv}.weight', kernel.shape)
        for name in STATISTICS:
            table[f'{source}{old}.norm.{name}'] = (f'{target}{norm}.{name}', kernel.shape[:1])

    add('stem.conv1', 'conv1', 'bn1')
    for stage, count in enumerate(blocks, 1):
        for block in range(count):
            old, new = f'res{stage + 1}.{block}', f'layer{stage}.{block}'
            for i in (1, 2, 3):
                add(f'{old}.conv{i}', f'{new}.conv{i}', f'{new}.bn{i}')
            if block == 0:
                add(f'{old}.shortcut', f'{new}.downsample.0', f'{new}.downsample.1')
    return table, BLOCKS[blocks]


def count_batches(state: dict[str, Tensor]) -> None:
    """Add ``num_batches_tracked`` = 0 for every norm, in place; detectron2's frozen norms lack it."""
    for key in [key for key in state if key.endswith('.running_mean')]:
        state[key.replace('running_mean', 'num_batches_tracked')] = torch.tensor(0)
