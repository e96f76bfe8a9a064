"""Convert an official Swin Transformer, any window, 1k or 22k classes, to the stock backbone to start training from."""

import re

from torch import Tensor

from .vit import Notes, depth, need, read_model, rename

KIND = 'an official Swin Transformer'
# (embed_dims, depths) -> the letter in the names of our configs.
SIZES = {(96, (2, 2, 6, 2)): 't', (96, (2, 2, 18, 2)): 's', (128, (2, 2, 18, 2)): 'b', (192, (2, 2, 18, 2)): 'l'}
# The classifier, the norm before it, and buffers that the model computes itself.
DROPPED = re.compile(r'head\.|norm\.|.*\.(attn_mask|relative_position_index)$')


def read(path: str) -> tuple[dict[str, Tensor]]:
    """Read (state, ) from a file of the release; raises ``UserError``."""
    return (read_model(path, KIND),)


def is_official(state: dict[str, Tensor]) -> bool:
    """Whether a state dict has the official names."""
    return 'layers.0.blocks.0.norm1.weight' in state


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Notes]:
    """Convert the official keys to the backbone's, without prefix; drop the classifier.

    Raises:
        UserError: The weights are not those of an official Swin Transformer.
    """
    kernel = need(state, 'patch_embed.proj.weight', KIND)
    dim, stages = len(kernel), depth(state, r'layers\.(\d+)\.')
    depths = tuple(depth(state, rf'layers\.{i}\.blocks\.(\d+)\.') for i in range(stages))
    table = {
        'patch_embed.proj.weight': ('patch_embed.projection.weight', kernel.shape),
        'patch_embed.proj.bias': ('patch_embed.projection.bias', (dim,)),
        **_weight_and_bias('patch_embed.norm', 'patch_embed.norm', dim),
    }
    if 'absolute_pos_embed' in state:
        table['absolute_pos_embed'] = ('absolute_pos_embed', state['absolute_pos_embed'].shape)
    for i, blocks in enumerate(depths):
        for j in range(blocks):
            table.update(_block_table(state, f'layers.{i}.blocks.{j}.', f'stages.{i}.blocks.{j}.', dim * 2**i))
        if i < stages - 1:
            width = 4 * dim * 2**i
            table.update(_weight_and_bias(f'layers.{i}.downsample.norm', f'stages.{i}.downsample.norm', width))
            key = f'{i}.downsample.reduction.weight'
            table[f'layers.{key}'] = (f'stages.{key}', (width // 2, width))
    converted = rename(state, table, KIND, [key for key in state if DROPPED.match(key)])
    for i in range(stages - 1):
        for name in ('norm.weight', 'norm.bias', 'reduction.weight'):
            key = f'stages.{i}.downsample.{name}'
            converted[key] = _unfold_order(converted[key])
    tables = [converted[f'stages.{i}.blocks.0.attn.w_msa.relative_position_bias_table'] for i in range(stages)]
    settings = {
        'backbone.embed_dims': dim,
        'backbone.patch_size': kernel.shape[-1],
        'backbone.in_channels': kernel.shape[1],
        'backbone.depths': depths,
        'backbone.num_heads': tuple(t.shape[1] for t in tables),
        'backbone.window_size': (round(len(tables[0]) ** 0.5) + 1) // 2,
    }
    letter = SIZES.get((dim, depths))
    return converted, Notes(
        dict(source='swin', settings=settings),
        settings,
        letter and f'upernet_swin-{letter}_*.py',
        ['Tables of relative positions stay as they are; the backbone resizes them to its window_size.'],
        pretrained='backbone.init_cfg.checkpoint',
    )


def _weight_and_bias(old, new, *shape):
    return {f'{old}.weight': (f'{new}.weight', shape), f'{old}.bias': (f'{new}.bias', shape[:1])}


def _block_table(state, old, new, dim):
    positions = 'relative_position_bias_table'
    hidden = len(need(state, f'{old}mlp.fc1.weight', KIND))
    return {
        f'{old}attn.{positions}': (f'{new}attn.w_msa.{positions}', need(state, f'{old}attn.{positions}', KIND).shape),
        **_weight_and_bias(f'{old}norm1', f'{new}norm1', dim),
        **_weight_and_bias(f'{old}attn.qkv', f'{new}attn.w_msa.qkv', 3 * dim, dim),
        **_weight_and_bias(f'{old}attn.proj', f'{new}attn.w_msa.proj', dim, dim),
        **_weight_and_bias(f'{old}norm2', f'{new}norm2', dim),
        **_weight_and_bias(f'{old}mlp.fc1', f'{new}ffn.layers.0.0', hidden, dim),
        **_weight_and_bias(f'{old}mlp.fc2', f'{new}ffn.layers.1', dim, hidden),
    }


def _unfold_order(x):
    """Reorder the input channels of patch merging from the official order to that of ``nn.Unfold``, channels first."""
    return x.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :].transpose(-1, -2).flatten(-2)
