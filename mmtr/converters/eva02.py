"""Convert timm's EVA-02 to ``mmtr.EVA02``, to start training from.

timm has two layouts. Ti and S have one projection for queries, keys and values, and one for gate and value of the
FFN; B and L have separate projections and a norm inside the FFN. ``mmtr.EVA02`` has joint projections for both. Its
rotary embedding rotates channels i and i + D / 2 of a head, timm's rotates channels 2i and 2i + 1.
"""

import re
from typing import Optional

import torch
from torch import Tensor

from mmtr.errors import UserError

from .timm_vit import read
from .vit import SIZES, Notes, Table, depth, grid_side, need, rename

__all__ = ['convert', 'eva02_table', 'fuse', 'notes_of', 'read']
KIND = 'a timm EVA-02'
DROPPED = ('head.weight', 'head.bias')


def convert(state: dict[str, Tensor], num_heads: Optional[int] = None) -> tuple[dict[str, Tensor], Notes]:
    """Convert timm's keys to the backbone's, without prefix; drop the classifier.

    Args:
        num_heads: Number of attention heads, which the file does not hold; None: heads of 64 channels, as in every
            released EVA-02.

    Raises:
        UserError: The weights are not those of an EVA-02, or ``num_heads`` does not fit them.
    """
    converted = rename(state, eva02_table(state, KIND), KIND, DROPPED)
    fuse(converted, num_heads=num_heads)
    side = grid_side(converted['pos_embed'])
    patch = converted['patch_embed.projection.weight'].shape[-1]
    notes = notes_of(converted, 'eva02', num_heads=num_heads)
    notes.remarks = [
        f'Patches stay at {patch}x{patch} pixels and the position table at {side}x{side}; the backbone resizes '
        'both to its own when it loads them.',
        "timm's models take images normalised as CLIP's; ours, as Cropr's, train with mean = std = 127.5.",
    ]
    return converted, notes


def eva02_table(state: dict[str, Tensor], kind: str, target: str = '') -> Table:
    """Build the table for ``rename`` of a timm EVA-02 in either layout; call ``fuse`` on the renamed weights.

    Args:
        kind: Name of the source in errors.
        target: Prefix of the new keys.
    """
    kernel = need(state, 'patch_embed.proj.weight', kind)
    positions = need(state, 'pos_embed', kind)
    dim = len(kernel)
    # timm's models with mean pooling have another name for the last norm.
    norm = 'norm' if 'norm.weight' in state else 'fc_norm'
    table = {
        'cls_token': (f'{target}cls_token', (1, 1, dim)),
        'pos_embed': (f'{target}pos_embed', (1, positions.numel() // dim, dim)),
        'patch_embed.proj.weight': (f'{target}patch_embed.projection.weight', (dim, *kernel.shape[1:])),
        'patch_embed.proj.bias': (f'{target}patch_embed.projection.bias', (dim,)),
        f'{norm}.weight': (f'{target}norm.weight', (dim,)),
        f'{norm}.bias': (f'{target}norm.bias', (dim,)),
    }
    hidden = need(state, 'blocks.0.mlp.fc2.weight', kind).shape[1]
    for i in range(depth(state, r'blocks\.(\d+)\.')):
        table.update(_block_table(state, f'blocks.{i}.', f'{target}layers.{i}.', dim, hidden))
    return table


def _block_table(state, source, target, dim, hidden):
    linear = {'attn.proj': ('attn.proj', dim, dim), 'mlp.fc2': ('ffn.fc2', dim, hidden)}
    norms = {'norm1': ('norm1', dim), 'norm2': ('norm2', dim)}
    table = {}
    if f'{source}attn.qkv.weight' in state:
        table = {
            'attn.qkv.weight': ('attn.in_proj.weight', (3 * dim, dim)),
            'attn.q_bias': ('attn.q_bias', (dim,)),
            'attn.v_bias': ('attn.v_bias', (dim,)),
        }
        linear['mlp.fc1'] = ('ffn.fc1', 2 * hidden, dim)
    else:
        table = {f'attn.{name}_proj.weight': (f'attn.{name}', (dim, dim)) for name in 'qkv'}
        table |= {f'attn.{name}_proj.bias': (f'attn.{name}_bias', (dim,)) for name in 'qv'}
        linear |= {'mlp.fc1_g': ('ffn.gate', hidden, dim), 'mlp.fc1_x': ('ffn.value', hidden, dim)}
        norms['mlp.norm'] = ('ffn.norm', hidden)
        if f'{source}attn.norm.weight' in state:  # EVA-02-CLIP
            norms['attn.norm'] = ('attn.norm', dim)
    for old, (new, n_out, n_in) in linear.items():
        table |= {f'{old}.weight': (f'{new}.weight', (n_out, n_in)), f'{old}.bias': (f'{new}.bias', (n_out,))}
    for old, (new, width) in norms.items():
        table |= {f'{old}.{kind}': (f'{new}.{kind}', (width,)) for kind in ('weight', 'bias')}
    return {source + old: (target + new, shape) for old, (new, shape) in table.items()}


def fuse(state: dict[str, Tensor], prefix: str = '', num_heads: Optional[int] = None) -> None:
    """Join the projections of either layout and reorder their rows for ``mmtr.EVA02``, in place.

    Args:
        state: Renamed weights.
        prefix: Prefix of the backbone's keys in ``state``.
        num_heads: See ``convert``.
    """
    _, layers, heads, _ = _size(state, prefix, num_heads)
    for i in range(layers):
        at = f'{prefix}layers.{i}.'
        if f'{at}attn.q' in state:
            state[f'{at}attn.in_proj.weight'] = torch.cat([state.pop(f'{at}attn.{name}') for name in 'qkv'])
            for kind in ('weight', 'bias'):
                parts = [state.pop(f'{at}ffn.{name}.{kind}') for name in ('gate', 'value')]
                state[f'{at}ffn.fc1.{kind}'] = torch.cat(parts)
        q, k, v = state[f'{at}attn.in_proj.weight'].chunk(3)
        state[f'{at}attn.in_proj.weight'] = torch.cat([_halves(q, heads), _halves(k, heads), v])
        state[f'{at}attn.q_bias'] = _halves(state[f'{at}attn.q_bias'], heads)


def _halves(rows, heads):
    """Reorder the rows of a projection: within each head first the even rows, then the odd rows."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _size(state, prefix, num_heads):
    dim = len(state[f'{prefix}patch_embed.projection.weight'])
    layers = depth(state, re.escape(prefix) + r'layers\.(\d+)\.')
    if num_heads is None and dim % 64:
        raise UserError(
            f'The file has {dim} channels, which are no heads of 64, as in every EVA-02 that was '
            'released: give the number of its heads, --num-heads.'
        )
    heads = dim // 64 if num_heads is None else num_heads
    if heads < 1 or dim % (4 * heads):
        raise UserError(
            f'--num-heads {heads} does not fit the {dim} channels of the file: each head needs a multiple '
            'of 4, for the rotary embedding.'
        )
    letter, usual_heads = SIZES.get((dim, layers), (None, None))
    return dim, layers, heads, letter if heads == usual_heads else None


def notes_of(state: dict[str, Tensor], source: str, prefix: str = '', num_heads: Optional[int] = None) -> Notes:
    """Return the ``Notes`` of a converted backbone, with the settings that its weights need.

    Args:
        state: Weights after ``fuse``.
        source: Name in ``SOURCES``.
        prefix: Prefix of the backbone's keys in ``state``.
        num_heads: See ``convert``.
    """
    dim, layers, heads, letter = _size(state, prefix, num_heads)
    hidden = state[f'{prefix}layers.0.ffn.fc2.weight'].shape[1]
    settings = {
        'backbone.in_channels': state[f'{prefix}patch_embed.projection.weight'].shape[1],
        'backbone.embed_dims': dim,
        'backbone.num_layers': layers,
        'backbone.num_heads': heads,
        'backbone.mlp_ratio': 8 / 3 if int(dim * 8 / 3) == hidden else (hidden + 0.5) / dim,
        'backbone.ffn_norm': f'{prefix}layers.0.ffn.norm.weight' in state,
        'backbone.attn_norm': f'{prefix}layers.0.attn.norm.weight' in state,
    }
    return Notes(dict(source=source, settings=settings), settings, letter and f'segmenter_eva02-{letter}_*.py')
