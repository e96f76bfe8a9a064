"""The official DINOv2 (facebookresearch), with and without registers -> ``mmtr.DINOv2``, to start training from."""

import re

from mmtr.errors import UserError

from .timm_vit import read
from .vit import SIZES, Notes, depth, grid_side, heads_of_64, need, rename, vit_table

__all__ = ['convert', 'dinov2_settings', 'dinov2_table', 'read']
KIND = 'an official DINOv2'
DROPPED = ('mask_token',)


def convert(state):
    """The release's keys -> the backbone's, without prefix; the mask token is dropped. Raises ``UserError``."""
    converted = rename(state, dinov2_table(state, KIND), KIND, DROPPED)
    settings = dinov2_settings(converted)
    letter = SIZES.get((settings['backbone.embed_dims'], settings['backbone.num_layers']), (None,))[0]
    side = settings['backbone.img_size'][0] // settings['backbone.patch_size']
    notes = Notes(dict(source='dinov2', settings=settings), settings, letter and f'dinov2-{letter}_full_*.py')
    notes.remarks = [
        f'The position table stays at its {side}x{side} patches; the backbone resizes it to its img_size.',
        "The images are normalised with ImageNet's mean and std.",
    ]
    if 'mask_token' in state:
        notes.remarks.insert(0, 'The mask token, which only pretraining uses, was left behind.')
    return converted, notes


def dinov2_table(state, kind, source='', target=''):
    """The table for ``rename`` of a DINOv2 whose keys begin with ``source``; raises ``UserError``."""
    if f'{source}blocks.0.mlp.w12.weight' in state:
        raise UserError('The FFN of this DINOv2 is SwiGLU, so it is the giant (ViT-g), which mmtr.DINOv2 does not '
                        'have: take S, B or L.')
    table = vit_table(state, kind, source, target)
    dim = len(need(state, f'{source}patch_embed.proj.weight', kind))
    registers = state.get(f'{source}register_tokens')
    if registers is not None:
        table[f'{source}register_tokens'] = (f'{target}register_tokens', (1, registers.numel() // dim, dim))
    for i in range(depth(state, re.escape(source) + r'blocks\.(\d+)\.')):
        table[f'{source}blocks.{i}.ls1.gamma'] = (f'{target}layers.{i}.attn.gamma1.weight', (dim,))
        table[f'{source}blocks.{i}.ls2.gamma'] = (f'{target}layers.{i}.ffn.gamma2.weight', (dim,))
    return table


def dinov2_settings(state, prefix=''):
    """The ``backbone`` keys that converted weights need; raises ``UserError`` for another kind of ViT."""
    dim, channels, patch, _ = state[f'{prefix}patch_embed.projection.weight'].shape
    registers = state.get(f'{prefix}register_tokens')
    return {
        'backbone.img_size': (grid_side(state[f'{prefix}pos_embed']) * patch,) * 2,
        'backbone.patch_size': patch,
        'backbone.in_channels': channels,
        'backbone.embed_dims': dim,
        'backbone.num_layers': depth(state, re.escape(prefix) + r'layers\.(\d+)\.'),
        'backbone.num_heads': heads_of_64(dim, KIND),
        'backbone.mlp_ratio': len(state[f'{prefix}layers.0.ffn.layers.0.0.weight']) // dim,
        'backbone.num_registers': 0 if registers is None else registers.shape[1],
    }
