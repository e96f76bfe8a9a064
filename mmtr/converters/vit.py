"""Functions that the sources share: read a file, rename the keys of a plain ViT, check that no weight is left over."""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Optional

import torch
from torch import Tensor

from mmtr.errors import UserError
from mmtr.weights.files import read_checkpoint

# (embed_dims, num_layers) -> the letter in the names of our configs, num_heads.
SIZES = {(192, 12): ('t', 3), (384, 12): ('s', 6), (768, 12): ('b', 12), (1024, 24): ('l', 16)}
#: For ``rename``: source key -> (new key, shape).
Table = dict[str, tuple[str, tuple[int, ...]]]
# Names in a transformer block: norm, projections to q, k and v, output projection, norm, and two layers of the FFN.
TIMM = ('norm1.', 'attn.qkv.', 'attn.proj.', 'norm2.', 'mlp.fc1.', 'mlp.fc2.')
GATED = (*TIMM[:4], 'mlp.w12.', 'mlp.w3.')
MMSEG = ('ln1.', 'attn.attn.in_proj_', 'attn.attn.out_proj.', 'ln2.', 'ffn.layers.0.0.', 'ffn.layers.1.')
MMPRETRAIN = ('ln1.', 'attn.qkv.', 'attn.proj.', 'ln2.', 'ffn.layers.0.0.', 'ffn.layers.1.')
#: ImageNet's mean and standard deviation of RGB, in pixel values.
IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))


@dataclass
class Notes:
    """Results of a conversion beside the weights.

    Args:
        meta: Stored with the weights.
        settings: Dotted keys of a config's ``model`` -> the values that the weights need.
        fits: Name of the config in ``configs/`` (of a backbone a pattern), None if there is none.
        remarks: Sentences for the user.
        pretrained: Key of the config's ``model`` that takes the file of a backbone.
    """

    meta: dict
    settings: dict
    fits: 'str | None' = None
    remarks: list = field(default_factory=list)
    pretrained: str = 'pretrained'


def read_model(path: str, kind: str) -> dict[str, Tensor]:
    """Read the weights of a checkpoint file that stores them under 'model'.

    Args:
        kind: Name of the source in errors; so in all functions here.

    Raises:
        UserError: The file cannot be read or has no 'model'.
    """
    state = read_checkpoint(path).get('model')
    if not isinstance(state, dict):
        raise UserError(f"'{path}' is not {kind}, which keeps its weights under 'model'.")
    return state


def need(state: dict[str, Tensor], key: str, kind: str) -> Tensor:
    """Return the tensor ``key`` of ``state``; raises ``UserError`` if it is missing."""
    if not isinstance(state.get(key), torch.Tensor):
        raise UserError(f'The file lacks {key!r}, so it is not {kind}.')
    return state[key]


def depth(state: dict[str, Tensor], pattern: str) -> int:
    """Count layers: one more than the highest number that ``pattern``, a regex with one group, finds in the keys."""
    return max((int(m[1]) for m in map(re.compile(pattern).match, state) if m), default=-1) + 1


def heads_of_64(dim: int, kind: str) -> int:
    """Return the number of attention heads if each has 64 channels; raises ``UserError`` if 64 does not divide dim."""
    if dim % 64:
        raise UserError(f'The file has {dim} channels, which are no heads of 64, as in {kind}.')
    return dim // 64


def grid_side(positions: Tensor) -> int:
    """Side, in patches, of the grid of a position table (1, 1 + N, C); raises ``UserError`` if N is no square."""
    entries = positions.shape[1]
    side = math.isqrt(entries - 1)
    if side * side != entries - 1:
        raise UserError(f'The position table has {entries} entries, which is no class token and a square.')
    return side


def rename(state: dict[str, Tensor], table: Table, kind: str, dropped: Iterable[str] = ()) -> dict[str, Tensor]:
    """Return the tensors of ``state`` under new names, as float32.

    Args:
        table: Source key -> (new key, shape).
        dropped: Source keys that are left out, if they are there.

    Raises:
        UserError: A key is unknown, missing or of another shape; names it.
    """

    def name(keys):
        keys = sorted(keys)
        return ', '.join(keys[:4]) + (f' and {len(keys) - 4} more' if len(keys) > 4 else '')

    unknown = state.keys() - table.keys() - set(dropped)
    if unknown:
        raise UserError(f'The file holds keys that {kind} does not have: {name(unknown)}.')
    missing = table.keys() - state.keys()
    if missing:
        raise UserError(f'The file lacks keys that {kind} has: {name(missing)}.')
    renamed = {}
    for key, (new_key, shape) in table.items():
        if tuple(state[key].shape) != tuple(shape):
            raise UserError(f'{key!r} has shape {tuple(state[key].shape)}; {kind} of this size has {tuple(shape)}.')
        renamed[new_key] = state[key].float()
    return renamed


def block_table(
    source: str,
    target: str,
    dim: int,
    hidden: int,
    old: tuple[str, ...] = TIMM,
    new: tuple[str, ...] = MMSEG,
    gated: bool = False,
) -> Table:
    """Build the table for ``rename`` of one transformer block.

    Args:
        source, target: Prefixes of the old and the new keys, without the last dot.
        dim: Embedding dimension.
        hidden: Hidden channels of the FFN; of a gated one, those of gate and value together.
        old, new: Names of its layers, in the order of ``TIMM``.
        gated: Whether the FFN is gated.
    """
    shapes = ((dim,), (3 * dim, dim), (dim, dim), (dim,), (hidden, dim), (dim, hidden // (2 if gated else 1)))
    table = {}
    for one, other, shape in zip(old, new, shapes):
        table[f'{source}.{one}weight'] = (f'{target}.{other}weight', shape)
        table[f'{source}.{one}bias'] = (f'{target}.{other}bias', shape[:1])
    return table


def vit_table(
    state: dict[str, Tensor], kind: str, source: str = '', target: str = '', new: tuple[str, ...] = MMSEG
) -> Table:
    """Build the table for ``rename`` of a timm ViT, or of DINOv2's giant, whose FFN is gated.

    Args:
        source, target: Prefixes of the old and the new keys.
        new: Names of the layers of a block, in the order of ``TIMM``.
    """
    kernel = need(state, f'{source}patch_embed.proj.weight', kind)
    positions = need(state, f'{source}pos_embed', kind)
    gated = f'{source}blocks.0.mlp.w12.weight' in state
    old, new = (GATED, (*new[:4], 'ffn.fc1.', 'ffn.fc2.')) if gated else (TIMM, new)
    hidden = len(need(state, f'{source}blocks.0.{old[4]}weight', kind))
    dim = len(kernel)
    table = {
        f'{source}cls_token': (f'{target}cls_token', (1, 1, dim)),
        f'{source}pos_embed': (f'{target}pos_embed', (1, positions.numel() // dim, dim)),
        f'{source}patch_embed.proj.weight': (f'{target}patch_embed.projection.weight', (dim, *kernel.shape[1:])),
        f'{source}patch_embed.proj.bias': (f'{target}patch_embed.projection.bias', (dim,)),
        f'{source}norm.weight': (f'{target}ln1.weight', (dim,)),
        f'{source}norm.bias': (f'{target}ln1.bias', (dim,)),
    }
    for i in range(depth(state, re.escape(source) + r'blocks\.(\d+)\.')):
        table.update(block_table(f'{source}blocks.{i}', f'{target}layers.{i}', dim, hidden, old, new, gated))
    return table


def fold_patch_bias(state: dict[str, Tensor], prefix: str = '') -> None:
    """Add the patch embedding's bias to the position table and remove it, in place.

    The sum is the same at any resolution. The stock configs have ``patch_bias=False``, with which mmseg
    would drop the bias in silence.
    """
    bias = state.pop(f'{prefix}patch_embed.projection.bias')
    positions = state[f'{prefix}pos_embed'].clone()
    positions[:, 1:] += bias
    state[f'{prefix}pos_embed'] = positions


def patch_embedding(state: dict[str, Tensor], kind: str, prefix: str = '') -> tuple[int, int, int]:
    """Channels, image channels and side of a patch, in pixels, of converted weights.

    Args:
        prefix: Prefix of the backbone's keys in ``state``.

    Raises:
        UserError: Patches are not square.
    """
    dim, channels, *patch = state[f'{prefix}patch_embed.projection.weight'].shape
    if len(patch) != 2 or patch[0] != patch[1]:
        raise UserError(f'The patches of {kind} in this file are {tuple(patch)}; they must be square.')
    return dim, channels, patch[0]


def backbone_settings(state: dict[str, Tensor], kind: str, eps: float, prefix: str = '') -> dict:
    """Return the settings ``backbone.*`` that converted weights need.

    Args:
        eps: Of every LayerNorm.
        prefix: Prefix of the backbone's keys in ``state``.

    Raises:
        UserError: Patches are not square, or the FFN is no multiple of the channels wide.
    """
    dim, channels, patch = patch_embedding(state, kind, prefix)
    hidden = len(state[f'{prefix}layers.0.ffn.layers.0.0.weight'])
    if hidden % dim:
        raise UserError(f'The FFN is {hidden} wide, which is no multiple of the {dim} channels (mlp_ratio).')
    return {
        'backbone.patch_size': patch,
        'backbone.in_channels': channels,
        'backbone.embed_dims': dim,
        'backbone.num_layers': depth(state, re.escape(prefix) + r'layers\.(\d+)\.'),
        'backbone.mlp_ratio': hidden // dim,
        'backbone.patch_bias': False,
        'backbone.final_norm': True,
        'backbone.norm_cfg.eps': eps,
    }


def backbone_notes(state: dict[str, Tensor], source: str, kind: str, num_heads: Optional[int] = None) -> Notes:
    """Return the ``Notes`` of a converted backbone without a head.

    Args:
        source: Name in ``SOURCES``.
        num_heads: Number of attention heads, if the file holds it; None: that of a ViT of this size.

    Raises:
        UserError: See ``backbone_settings``; or the position table has no entry for a class token.
    """
    settings = backbone_settings(state, kind, eps=1e-6)
    size = (settings['backbone.embed_dims'], settings['backbone.num_layers'])
    letter, heads = SIZES.get(size, (None, None))
    settings['backbone.num_heads'] = num_heads or heads
    patches = state['pos_embed'].shape[1] - 1
    side = math.isqrt(patches)
    remarks = [f'The position table stays at its {patches} patches; the backbone resizes it to its img_size.']
    if math.isqrt(patches + 1) ** 2 == patches + 1:
        raise UserError(f'The position table has {patches + 1} entries, none of them for the class token.')
    if side * side != patches:
        remarks = [
            f'The position table is of {patches} patches, not a square, so it is not resized: '
            'img_size must give exactly as many.'
        ]
    if settings['backbone.num_heads'] is None:
        del settings['backbone.num_heads']
        remarks.append('The number of heads is not in the file: set backbone.num_heads.')
    meta = dict(source=source, patches=patches, settings=settings)
    return Notes(meta, settings, letter and f'segmenter_vit-{letter}_*.py', remarks)
