"""Convert Google's AugReg ViT (JAX, ``.npz``) to the stock ViT backbone, to start training from."""

import zipfile
import zlib

import numpy as np
import torch
from torch import Tensor

from mmtr.errors import UserError

from .vit import Notes, backbone_notes, depth, fold_patch_bias, need, rename

KIND = 'an AugReg ViT'
DROPPED = ('head/kernel', 'head/bias', 'pre_logits/kernel', 'pre_logits/bias')
ATTENTION = 'MultiHeadDotProductAttention_1'


def read(path: str) -> tuple[dict[str, Tensor]]:
    """Read (state, ) from an ``.npz`` file without unpickling; raises ``UserError`` if it cannot be read."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return ({key: torch.from_numpy(arrays[key]) for key in arrays.files},)
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f'{path} cannot be read as an .npz file of plain arrays: {error}.') from error


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Notes]:
    """Convert JAX's keys to the backbone's, without prefix; drop the classifier.

    JAX stores matrices as (in, out), with heads as an axis of their own: query, key and value
    are (in, heads, channels), out is (heads, channels, out).

    Raises:
        UserError: The weights are not those of an AugReg ViT.
    """
    kernel = need(state, 'embedding/kernel', KIND)
    positions = need(state, 'Transformer/posembed_input/pos_embedding', KIND)
    heads = need(state, f'Transformer/encoderblock_0/{ATTENTION}/query/kernel', KIND).shape[1]
    hidden = len(need(state, 'Transformer/encoderblock_0/MlpBlock_3/Dense_0/bias', KIND))
    dim = kernel.shape[-1]
    layers = depth(state, r'Transformer/encoderblock_(\d+)/')

    table = {
        'cls': ('cls_token', (1, 1, dim)),
        'Transformer/posembed_input/pos_embedding': ('pos_embed', (1, positions.numel() // dim, dim)),
        'embedding/kernel': ('patch_embed.projection.weight', (*kernel.shape[:-1], dim)),
        'embedding/bias': ('patch_embed.projection.bias', (dim,)),
        'Transformer/encoder_norm/scale': ('ln1.weight', (dim,)),
        'Transformer/encoder_norm/bias': ('ln1.bias', (dim,)),
    }
    for i in range(layers):
        table.update(_block_table(i, dim, hidden, heads))
    converted = rename(state, table, KIND, DROPPED)

    key = 'patch_embed.projection.weight'
    converted[key] = converted[key].permute(3, 2, 0, 1).contiguous()
    for i in range(layers):
        for kind, shape in (('weight', (dim, dim)), ('bias', (dim,))):
            parts = [
                converted.pop(f'layers.{i}.{name}.{kind}').reshape(shape).t() for name in ('query', 'key', 'value')
            ]
            converted[f'layers.{i}.attn.attn.in_proj_{kind}'] = torch.cat(parts)
        for name in ('attn.attn.out_proj', 'ffn.layers.0.0', 'ffn.layers.1'):
            key = f'layers.{i}.{name}.weight'
            converted[key] = converted[key].flatten(0, -2).t().contiguous()
    fold_patch_bias(converted)
    notes = backbone_notes(converted, 'augreg_npz', KIND, heads)
    notes.settings.update({'data_preprocessor.mean': (127.5,) * 3, 'data_preprocessor.std': (127.5,) * 3})
    return converted, notes


def _block_table(i, dim, hidden, heads):
    source, target = f'Transformer/encoderblock_{i}', f'layers.{i}'
    table = {}
    for norm, name in (('LayerNorm_0', 'ln1'), ('LayerNorm_2', 'ln2')):
        table[f'{source}/{norm}/scale'] = (f'{target}.{name}.weight', (dim,))
        table[f'{source}/{norm}/bias'] = (f'{target}.{name}.bias', (dim,))
    for name in ('query', 'key', 'value'):
        table[f'{source}/{ATTENTION}/{name}/kernel'] = (f'{target}.{name}.weight', (dim, heads, dim // heads))
        table[f'{source}/{ATTENTION}/{name}/bias'] = (f'{target}.{name}.bias', (heads, dim // heads))
    for old, new, shape in (
        (f'{ATTENTION}/out', 'attn.attn.out_proj', (heads, dim // heads, dim)),
        ('MlpBlock_3/Dense_0', 'ffn.layers.0.0', (dim, hidden)),
        ('MlpBlock_3/Dense_1', 'ffn.layers.1', (hidden, dim)),
    ):
        table[f'{source}/{old}/kernel'] = (f'{target}.{new}.weight', shape)
        table[f'{source}/{old}/bias'] = (f'{target}.{new}.bias', shape[-1:])
    return table
