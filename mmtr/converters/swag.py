"""Convert SWAG's ViTs (CVPR 2022) to mmpretrain's ``ImageClassifier``; ``torchvision_vit`` shares most of it."""

from typing import Optional

from torch import Tensor

from .classifier import classifier_notes, head_table
from .timm_vit import read
from .vit import MMPRETRAIN, Notes, Table, block_table, depth, need, rename

__all__ = ['convert', 'encoder_table', 'position_remark', 'read']
KIND = "SWAG's ViT"
BLOCK = ('ln_1.', 'self_attention.in_proj_', 'self_attention.out_proj.', 'ln_2.', 'mlp.linear_1.', 'mlp.linear_2.')
CONFIGS = {('large', 16, 512): 'swag_vit-l_imagenet.py', ('base', 16, 384): 'swag_vit-b_imagenet.py'}


def convert(state: dict[str, Tensor], num_heads: Optional[int] = None) -> tuple[dict[str, Tensor], Notes]:
    """Convert SWAG's keys to ``backbone.*`` and ``head.*``; a file of pretraining has no head.

    Args:
        num_heads: Number of attention heads, which the file does not hold; None: that of a ViT of this size.

    Raises:
        UserError: The weights are not those of a ViT of SWAG, or ``num_heads`` does not fit them.
    """
    dim = len(need(state, 'conv_proj.weight', KIND))
    table = encoder_table(state, KIND, 'layer_', BLOCK)
    positions = 'encoder.pos_embedding'
    # SWAG's sequences come first, then the batch.
    table[positions] = ('backbone.pos_embed', (need(state, positions, KIND).numel() // dim, 1, dim))
    if any(key.startswith('head.') for key in state):
        table.update(classes_table(state, KIND, 'head.layers'))
    converted = rename(state, table, KIND)
    converted['backbone.pos_embed'] = converted['backbone.pos_embed'].transpose(0, 1).contiguous()
    notes = classifier_notes(converted, 'swag', KIND, num_heads, 'cls_token', CONFIGS)
    if 'head.type' not in notes.settings:
        notes.fits = None  # the configs are not for training
    notes.remarks.append(position_remark(notes, 'SWAG'))
    return converted, notes


def encoder_table(state: dict[str, Tensor], kind: str, layer: str, block: tuple[str, ...]) -> Table:
    """Build the table for ``rename`` of what SWAG and torchvision share, without positions and head.

    Args:
        kind: Name of the source in errors.
        layer: Name of a layer, without its number.
        block: Names of its parts, in the order of ``TIMM``.
    """
    kernel = need(state, 'conv_proj.weight', kind)
    dim = len(kernel)
    hidden = len(need(state, f'encoder.layers.{layer}0.{block[4]}weight', kind))
    table = {
        'class_token': ('backbone.cls_token', (1, 1, dim)),
        'conv_proj.weight': ('backbone.patch_embed.projection.weight', tuple(kernel.shape)),
        'conv_proj.bias': ('backbone.patch_embed.projection.bias', (dim,)),
        'encoder.ln.weight': ('backbone.ln1.weight', (dim,)),
        'encoder.ln.bias': ('backbone.ln1.bias', (dim,)),
    }
    for i in range(depth(state, rf'encoder\.layers\.{layer}(\d+)\.')):
        table.update(block_table(f'encoder.layers.{layer}{i}', f'backbone.layers.{i}', dim, hidden, block, MMPRETRAIN))
    return table


def classes_table(state: dict[str, Tensor], kind: str, name: str) -> Table:
    """Build the table for ``rename`` of a head, with or without a hidden layer.

    Args:
        kind: Name of the source in errors.
        name: Name of the head in ``state``.
    """
    table = head_table(state, kind, f'{name}.head', 'head.layers.head')
    if f'{name}.pre_logits.weight' in state:
        table.update(head_table(state, kind, f'{name}.pre_logits', 'head.layers.pre_logits'))
    return table


def position_remark(notes: Notes, whose: str) -> str:
    """Say at which sizes of images the results are those of the release."""
    size, patch = notes.settings['backbone.img_size'], notes.settings['backbone.patch_size']
    return (
        f'The position table stays at its {size // patch}x{size // patch} patches, of images of {size}x{size}: for '
        f'another size {whose} resizes it with align_corners=True and mmpretrain without, so results there differ '
        f'from those of {whose}.'
    )
