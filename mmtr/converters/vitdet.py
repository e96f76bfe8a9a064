"""Convert the backbone of detectron2's ViTDet, or a MAE that ViTDet's training starts from, to ``mmtr.ViTDet``."""

from typing import Optional

import torch
from torch import Tensor

from mmtr.errors import UserError
from mmtr.weights.files import read_checkpoint

from .classifier import HEADS
from .vit import TIMM, Notes, Table, block_table, depth, grid_side, need, patch_embedding, rename

KIND = "detectron2's ViTDet"
PREFIX = 'backbone.net.'
OURS = ('norm1.', 'attn.qkv.', 'attn.proj.', 'norm2.', 'ffn.fc1.', 'ffn.fc2.')
TABLES = ('rel_pos_h', 'rel_pos_w')
LETTERS = {(768, 12): 'b', (1024, 24): 'l', (1280, 32): 'h'}


def read(path: str) -> tuple[dict[str, Tensor]]:
    """Read (state, ) from a pickle or a ``.pth``, under 'model' or alone; raises ``UserError``."""
    checkpoint = read_checkpoint(path)
    state = checkpoint.get('model', checkpoint)
    if not isinstance(state, dict):
        raise UserError(f"'{path}' is not {KIND}: what it has under 'model' is a {type(state).__name__}.")
    return ({key: torch.as_tensor(value) for key, value in state.items()},)


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Notes]:
    """Convert the release's keys to the backbone's, without prefix; drop pyramid and heads, or MAE's class token.

    Raises:
        UserError: The weights are not those of a ViTDet's backbone or of a MAE of size B, L or H.
    """
    trained = any(key.startswith(PREFIX) for key in state)
    if trained:
        return backbone_of(state, 'vitdet', KIND, PREFIX, 'The simple feature pyramid and the heads')
    others = ('cls_token', 'norm.weight', 'norm.bias', 'mask_token')
    kept = {k: v for k, v in state.items() if k not in others and not k.startswith('decoder_')}
    kept, left = _with_zero_tables(kept), 'The class token and the last norm'
    converted, notes = backbone_of(kept, 'vitdet', 'a MAE', '', left)
    for key in ('img_size', 'window_size', 'global_attn_indexes'):
        del notes.settings[f'backbone.{key}']
    notes.remarks[:0] = ['The file has no relative positions: they start at zero, as in ViTDet.']
    return converted, notes


def backbone_of(
    state: dict[str, Tensor], source: str, kind: str, prefix: str, others: str, names: tuple[str, ...] = TIMM
) -> tuple[dict[str, Tensor], Notes]:
    """Convert the weights of a ViTDet's backbone, whose keys begin with ``prefix``; all others are left out.

    Args:
        source: Name in ``SOURCES``.
        kind: Name of the source in errors.
        others: What is left out, for a remark.
        names: Names of the layers of a block, in the order of ``TIMM``.

    Raises:
        UserError: A key is unknown, missing or of another shape; patches or position table are not square; or the
            tables of relative positions are of more than one size of windows.
    """
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    converted = rename(own, _table(own, kind, names), kind)
    dim, channels, patch = patch_embedding(converted, kind)
    side = grid_side(converted['pos_embed'])
    layers = depth(converted, r'layers\.(\d+)\.')
    sizes = [tuple((len(converted[f'layers.{i}.attn.{name}']) + 1) // 2 for name in TABLES) for i in range(layers)]
    window, grid = min(sizes), max(sizes)
    if len({*sizes}) > 2 or (window != grid and window[0] != window[1]):
        raise UserError(
            f'The relative positions of {kind} in this file are of {sorted({*sizes})} patches: {kind} has '
            'square windows of one size, and global layers.'
        )
    settings = {
        'backbone.img_size': tuple(n * patch for n in grid),
        'backbone.pretrain_img_size': (side * patch,) * 2,
        'backbone.patch_size': patch,
        'backbone.in_channels': channels,
        'backbone.embed_dims': dim,
        'backbone.num_layers': layers,
        'backbone.num_heads': dim // converted['layers.0.attn.rel_pos_h'].shape[1],
        'backbone.mlp_ratio': len(converted['layers.0.ffn.fc1.weight']) / dim,
        'backbone.window_size': window[0],
        'backbone.global_attn_indexes': tuple(i for i, size in enumerate(sizes) if size == grid),
    }
    letter = LETTERS.get((dim, layers))
    fits = letter and f'cascade-mask-rcnn_vitdet-{letter}_*.py'
    notes = Notes(dict(source=source, settings=settings), dict(settings), fits, pretrained='backbone.pretrained')
    notes.remarks = [
        f'{others} of the file were left behind.',
        "Tables of positions stay as they are; the backbone resizes them. Images are normalised with ImageNet's mean "
        'and std.',
    ]
    return converted, notes


def _table(state, kind, names) -> Table:
    kernel, positions = (need(state, key, kind) for key in ('patch_embed.proj.weight', 'pos_embed'))
    dim, tables = len(kernel), [f'blocks.0.attn.{name}' for name in TABLES]
    table = {
        'pos_embed': ('pos_embed', (1, positions.numel() // dim, dim)),
        'patch_embed.proj.weight': ('patch_embed.projection.weight', tuple(kernel.shape)),
        'patch_embed.proj.bias': ('patch_embed.projection.bias', (dim,)),
    }
    hidden = len(need(state, f'blocks.0.{names[4]}weight', kind))
    head = need(state, tables[0], kind).shape[-1]
    if dim % head:
        raise UserError(f'{tables[0]!r} has {head} channels, of which no number of heads makes the {dim} of the file.')
    for i in range(depth(state, r'blocks\.(\d+)\.')):
        table.update(block_table(f'blocks.{i}', f'layers.{i}', dim, hidden, names, OURS))
        for name in TABLES:
            rows = len(need(state, f'blocks.{i}.attn.{name}', kind))
            table[f'blocks.{i}.attn.{name}'] = (f'layers.{i}.attn.{name}', (rows, head))
    return table


def _with_zero_tables(state: dict[str, Tensor]) -> dict[str, Optional[Tensor]]:
    dim, layers = len(need(state, 'patch_embed.proj.weight', KIND)), depth(state, r'blocks\.(\d+)\.')
    if (dim, layers) not in LETTERS:
        raise UserError(
            f'The file has {dim} channels and {layers} layers, which is no MAE of size B, L or H, and not {KIND}.'
        )
    # Of one difference: zeros, at whatever size the backbone has them.
    zeros = torch.zeros(1, dim // HEADS[dim, layers])
    return {**state, **{f'blocks.{i}.attn.{name}': zeros for i in range(layers) for name in TABLES}}
