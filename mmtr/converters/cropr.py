"""Convert the official Cropr segmentation checkpoints, pruned or not, to ``EncoderDecoder`` on ``mmtr.EVA02``."""

from typing import Optional

from torch import Tensor

from .eva02 import eva02_table, fuse, notes_of
from .vit import Notes, depth, grid_side, need, read_model, rename

KIND = 'an official Cropr segmentation model'
# Names in a Cropr module of the release -> in ``mmtr.reducers.Cropr``. Every file has the queries.
QUERIES = ('cross_attn.queries', 'queries')
LINEAR = {
    'cross_attn.q': 'q',
    'cross_attn.k': 'k',
    'cross_attn.v': 'v',
    'cross_attn.proj': 'proj',
    'cross_attn.attn_norm': 'norm',
    'cross_attn.mlp_norm': 'mlp.0',
    'cross_attn.mlp.fc1': 'mlp.1',
    'cross_attn.mlp.fc2': 'mlp.3',
    'head.norm': 'head.0',
    'head.head': 'head.1',
}


def read(path: str) -> tuple[dict[str, Tensor]]:
    """Read (state, ) from a ``checkpoint.pth`` of the release; raises ``UserError``."""
    return (read_model(path, KIND),)


def convert(state: dict[str, Tensor], num_heads: Optional[int] = None) -> tuple[dict[str, Tensor], Notes]:
    """Convert the release's keys to ``backbone.*`` and ``decode_head.*``.

    The Cropr modules, one after each layer but the last two, become ``backbone.token_reducer``.

    Args:
        num_heads: See ``mmtr.converters.eva02.convert``.

    Raises:
        UserError: The weights are not those of an official Cropr model.
    """
    table = eva02_table(state, KIND, 'backbone.')
    weight = need(state, 'head.weight', KIND)
    classes, dim = weight.shape
    table['head.weight'] = ('decode_head.conv_seg.weight', (classes, dim))
    table['head.bias'] = ('decode_head.conv_seg.bias', (classes,))
    modules = depth(state, r'cropr\.(\d+)\.')
    for i in range(modules):
        table.update(_module_table(state, f'cropr.{i}.', f'backbone.token_reducer.heads.layer_{i:02}.'))
    converted = rename(state, table, KIND)
    fuse(converted, 'backbone.', num_heads)
    converted['decode_head.conv_seg.weight'] = converted['decode_head.conv_seg.weight'][:, :, None, None]
    for i in range(modules):
        key = f'backbone.token_reducer.heads.layer_{i:02}.queries'
        converted[key] = converted[key].squeeze(0)

    notes = notes_of(converted, 'cropr', 'backbone.', num_heads)
    patch = converted['backbone.patch_embed.projection.weight'].shape[-1]
    notes.settings.update(
        {
            'backbone.patch_size': patch,
            'backbone.img_size': (patch * grid_side(converted['backbone.pos_embed']),) * 2,
            'decode_head.num_classes': classes,
            'data_preprocessor.mean': (127.5,) * 3,
            'data_preprocessor.std': (127.5,) * 3,
        }
    )
    if notes.fits:
        notes.fits = notes.fits.replace('*', 'cropr_ade20k' if modules else 'ade20k')
    if modules:
        notes.settings.update(_module_settings(state, dim))
        if 'cropr.0.cross_attn.proj.weight' in state:
            notes.remarks.append(
                'Its Cropr modules have several heads, and the file does not say how many: set '
                'backbone.token_reduction.num_heads.'
            )
    return converted, notes


def _module_settings(state, dim):
    """Settings of ``mmtr.reducers.Cropr`` in which these modules differ from the release's training command."""
    settings = {}
    projections = tuple(name for name in 'qkv' if f'cropr.0.cross_attn.{name}.weight' in state)
    if projections:
        settings['projections'] = projections
    if 'cropr.0.cross_attn.attn_norm.weight' in state:
        settings['pre_norm'] = True
    width = len(state.get('cropr.0.cross_attn.mlp.fc1.weight', ()))
    if width != 4 * dim:
        settings['mlp_ratio'] = width / dim
    return {f'backbone.token_reduction.{key}': value for key, value in settings.items()}


def _module_table(state, source, target):
    """The table for ``rename`` of the weights that the file has of one Cropr module; loading finds missing ones."""
    table = {source + QUERIES[0]: (target + QUERIES[1], need(state, source + QUERIES[0], KIND).shape)}
    for old, new in LINEAR.items():
        for kind in ('weight', 'bias'):
            key = f'{source}{old}.{kind}'
            if key in state:
                table[key] = (f'{target}{new}.{kind}', state[key].shape)
    return table
