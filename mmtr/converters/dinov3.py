"""Convert DINOv3, of Meta's release, Hugging Face or timm, to ``mmtr.DINOv3``, to start training from."""

import re
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from .timm_vit import read
from .vit import Notes, Table, depth, heads_of_64, need, patch_embedding, rename

__all__ = ['LAYOUTS', 'Layout', 'convert', 'dinov3_table', 'fuse', 'layout_of', 'read', 'settings_of']
KIND = 'a DINOv3'
LICENCE = (
    'Converted weights, and those fine-tuned from them, stay under the DINOv3 License: pass them on with a copy of it '
    'only, and name DINOv3 in publications.'
)
#: (channels, layers, gated) -> letters in the names of our configs.
SIZES = {
    (384, 12, False): 's',
    (384, 12, True): 's+',
    (768, 12, False): 'b',
    (1024, 24, False): 'l',
    (1280, 32, True): 'h+',
}


@dataclass(frozen=True)
class Layout:
    """The names of the weights in one kind of file.

    Args:
        patch: Patch embedding.
        cls_token, registers: The prefix tokens.
        block: Prefix of a layer, with ``{}`` for its number.
        qkv: Projection to queries, keys and values; or ``{}_proj`` for three.
        proj: Output projection of attention.
        scales: LayerScale of attention, of the FFN.
        mlp: The two layers of an FFN.
        gated: Gate, value and last layer of a gated FFN.
        dropped: What is left out; regular expressions.
    """

    patch: str
    cls_token: str
    registers: str
    block: str
    qkv: str
    proj: str
    scales: tuple[str, str]
    mlp: tuple[str, str]
    gated: tuple[str, str, str]
    dropped: tuple[str, ...] = ()


LAYOUTS = dict(
    release=Layout(
        'patch_embed.proj',
        'cls_token',
        'storage_tokens',
        'blocks.{}.',
        'attn.qkv',
        'attn.proj',
        ('ls1.gamma', 'ls2.gamma'),
        ('mlp.fc1', 'mlp.fc2'),
        ('mlp.w1', 'mlp.w2', 'mlp.w3'),
        # The mask of the key bias, which is 0 there; a norm for pretraining alone.
        (r'mask_token', r'rope_embed\.periods', r'blocks\.\d+\.attn\.qkv\.bias_mask', r'local_cls_norm\.\w+'),
    ),
    huggingface=Layout(
        'embeddings.patch_embeddings',
        'embeddings.cls_token',
        'embeddings.register_tokens',
        'layer.{}.',
        'attention.{}_proj',
        'attention.o_proj',
        ('layer_scale1.lambda1', 'layer_scale2.lambda1'),
        ('mlp.up_proj', 'mlp.down_proj'),
        ('mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj'),
        (r'embeddings\.mask_token', r'rope_embeddings\.\w+'),
    ),
    timm=Layout(
        'patch_embed.proj',
        'cls_token',
        'reg_token',
        'blocks.{}.',
        'attn.qkv',
        'attn.proj',
        ('gamma_1', 'gamma_2'),
        ('mlp.fc1', 'mlp.fc2'),
        ('mlp.fc1_g', 'mlp.fc1_x', 'mlp.fc2'),
        (r'rope\.\w+', r'head\.\w+'),
    ),
)


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Notes]:
    """Convert the keys of any of ``LAYOUTS`` to the backbone's, without prefix.

    Raises:
        UserError: The weights are not those of a DINOv3.
    """
    # In memory, transformers calls the layers of its files "model.layer".
    state = {name.removeprefix('model.'): value for name, value in state.items()}
    layout = layout_of(state)
    dropped = [name for name in state if any(re.fullmatch(pattern, name) for pattern in layout.dropped)]
    table, zeros = dinov3_table(state, layout)
    converted = {**rename(state, table, KIND, dropped), **zeros}
    fuse(converted)
    settings = settings_of(converted)
    dim, layers = settings['backbone.embed_dims'], settings['backbone.num_layers']
    letter = SIZES.get((dim, layers, settings['backbone.ffn'] == 'swiglu'))
    notes = Notes(dict(source='dinov3', settings=settings), settings, letter and f'dinov3-{letter}_simple_*.py')
    notes.remarks = [
        LICENCE,
        "The images are normalised with ImageNet's mean and std; of weights from satellite images, with mean "
        '(109.65, 104.805, 75.48) and std (54.315, 39.78, 36.465).',
    ]
    return converted, notes


def layout_of(state: dict[str, Tensor]) -> Layout:
    """Tell the layout of a file by its LayerScale; of a file that is none of them, say the release's."""
    named = (layout for layout in LAYOUTS.values() if layout.block.format(0) + layout.scales[0] in state)
    return next(named, LAYOUTS['release'])


def dinov3_table(
    state: dict[str, Tensor], layout: Layout, source: str = '', target: str = '', kind: str = KIND
) -> tuple[Table, dict[str, Tensor]]:
    """Build the table for ``rename`` of a DINOv3; call ``fuse`` on the renamed weights.

    Args:
        layout: Names of the weights.
        source, target: Prefixes of the old and the new keys.
        kind: Name of the source in errors.

    Returns:
        The table, and weights that the file leaves out since they are zero, under their new keys.
    """
    kernel = need(state, f'{source}{layout.patch}.weight', kind)
    dim = len(kernel)
    table = {
        layout.cls_token: ('cls_token', (1, 1, dim)),
        f'{layout.patch}.weight': ('patch_embed.projection.weight', (dim, *kernel.shape[1:])),
        f'{layout.patch}.bias': ('patch_embed.projection.bias', (dim,)),
        'norm.weight': ('norm.weight', (dim,)),
        'norm.bias': ('norm.bias', (dim,)),
    }
    registers = state.get(f'{source}{layout.registers}')
    if registers is not None:
        table[layout.registers] = ('register_tokens', (1, registers.numel() // dim, dim))
    zeros, block = {}, re.escape(source + layout.block).replace(r'\{\}', r'(\d+)')
    for i in range(depth(state, block)):
        old, new = layout.block.format(i), f'layers.{i}.'
        names, left_out = _block(state, layout, source + old, dim, kind)
        table.update({old + name: (new + other, shape) for name, (other, shape) in names.items()})
        zeros.update({f'{target}{new}{name}': torch.zeros(dim) for name in left_out})
    return {source + old: (target + new, shape) for old, (new, shape) in table.items()}, zeros


def _block(state, layout, source, dim, kind):
    """Names in one layer: {old: (new, shape)}, and the new names of biases that the file does not have."""
    gate, value, last = layout.gated
    if f'{source}{gate}.weight' in state:
        hidden = len(state[f'{source}{gate}.weight'])
        linear = {gate: ('ffn.gate', hidden, dim), value: ('ffn.value', hidden, dim), last: ('ffn.fc2', dim, hidden)}
    else:
        first, last = layout.mlp
        hidden = len(need(state, f'{source}{first}.weight', kind))
        linear = {first: ('ffn.fc1', hidden, dim), last: ('ffn.fc2', dim, hidden)}
    linear[layout.proj] = ('attn.proj', dim, dim)
    table = {}
    for old, (new, n_out, n_in) in linear.items():
        table |= {f'{old}.weight': (f'{new}.weight', (n_out, n_in)), f'{old}.bias': (f'{new}.bias', (n_out,))}
    for name in ('norm1', 'norm2'):
        table |= {f'{name}.{part}': (f'{name}.{part}', (dim,)) for part in ('weight', 'bias')}
    table |= {old: (new, (dim,)) for old, new in zip(layout.scales, ('attn.gamma1.weight', 'ffn.gamma2.weight'))}
    if '{}' in layout.qkv:
        table |= {f'{layout.qkv.format(name)}.weight': (f'attn.{name}', (dim, dim)) for name in 'qkv'}
        biases = {name: f'{layout.qkv.format(name)}.bias' for name in 'qv'}
    else:
        table[f'{layout.qkv}.weight'] = ('attn.in_proj.weight', (3 * dim, dim))
        if f'{source}{layout.qkv}.bias' in state:
            table[f'{layout.qkv}.bias'] = ('attn.qkv_bias', (3 * dim,))
            return table, ()
        biases = {name: f'attn.{name}_bias' for name in 'qv'}
    there = {name: old for name, old in biases.items() if f'{source}{old}' in state}
    table |= {old: (f'attn.{name}_bias', (dim,)) for name, old in there.items()}
    return table, [f'attn.{name}_bias' for name in biases if name not in there]


def fuse(state: dict[str, Tensor], prefix: str = '') -> None:
    """Join the projections of queries, keys and values, and of gate and value, in place.

    Args:
        state: Renamed weights.
        prefix: Prefix of the backbone's keys in ``state``.
    """
    for i in range(depth(state, re.escape(prefix) + r'layers\.(\d+)\.')):
        at = f'{prefix}layers.{i}.'
        if f'{at}attn.q' in state:
            state[f'{at}attn.in_proj.weight'] = torch.cat([state.pop(f'{at}attn.{name}') for name in 'qkv'])
        if f'{at}attn.qkv_bias' in state:
            # The release masks the bias of keys to 0.
            state[f'{at}attn.q_bias'], _, state[f'{at}attn.v_bias'] = state.pop(f'{at}attn.qkv_bias').chunk(3)
        if f'{at}ffn.gate.weight' in state:
            for part in ('weight', 'bias'):
                joined = [state.pop(f'{at}ffn.{name}.{part}') for name in ('gate', 'value')]
                state[f'{at}ffn.fc1.{part}'] = torch.cat(joined)


def settings_of(state: dict[str, Tensor], prefix: str = '', kind: Optional[str] = None) -> dict:
    """Return the settings ``backbone.*`` that converted weights need.

    Args:
        state: Weights after ``fuse``.
        prefix: Prefix of the backbone's keys in ``state``.
        kind: Name of the source in errors.
    """
    dim, channels, patch = patch_embedding(state, kind or KIND, prefix)
    registers = state.get(f'{prefix}register_tokens')
    hidden = state[f'{prefix}layers.0.ffn.fc2.weight'].shape[1]
    gated = len(state[f'{prefix}layers.0.ffn.fc1.weight']) == 2 * hidden
    return {
        'backbone.patch_size': patch,
        'backbone.in_channels': channels,
        'backbone.embed_dims': dim,
        'backbone.num_layers': depth(state, re.escape(prefix) + r'layers\.(\d+)\.'),
        'backbone.num_heads': heads_of_64(dim, kind or KIND) if dim != 4096 else 32,
        'backbone.ffn': 'swiglu' if gated else 'mlp',
        'backbone.hidden': hidden,
        'backbone.num_registers': 0 if registers is None else registers.shape[1],
    }
