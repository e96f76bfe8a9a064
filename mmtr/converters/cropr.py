"""Convert the official Cropr checkpoints, pruned or not.

Those of segmentation, EVA-02s, become an ``EncoderDecoder`` on ``mmtr.EVA02``; those of classification, plain ViTs,
mmpretrain's ``ImageClassifier`` on ``mmtr.ClsVisionTransformer``.
"""

from typing import Optional

from torch import Tensor

from mmtr.errors import UserError

from .classifier import classifier_notes
from .eva02 import eva02_table, fuse, notes_of
from .mae import CONFIGS, classifier_table, pools
from .timm_vit import read
from .vit import Notes, depth, grid_side, need, rename

__all__ = ['convert', 'read']
KIND = 'an official Cropr model'
CLASSIFIER = 'an official Cropr classifier'
PRUNED_CONFIGS = {('large', 16, 224): 'mae_vit-l_cropr_imagenet.py'}
REDUCTION = 'backbone.token_reduction.'
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


def convert(state: dict[str, Tensor], num_heads: Optional[int] = None) -> tuple[dict[str, Tensor], Notes]:
    """Convert the release's keys to ``backbone.*`` and ``decode_head.*``, or ``head.*`` of a classifier.

    The Cropr modules, one after each layer but the last two, become ``backbone.token_reducer``.

    Args:
        num_heads: See ``mmtr.converters.eva02.convert``; of a classifier, ``mmtr.converters.mae.convert``.

    Raises:
        UserError: The weights are not those of an official Cropr model.
    """
    if 'blocks.0.attn.qkv.bias' in state:  # no EVA-02 has it
        return _classifier(state, num_heads)
    table = eva02_table(state, KIND, 'backbone.')
    weight = need(state, 'head.weight', KIND)
    classes, dim = weight.shape
    table['head.weight'] = ('decode_head.conv_seg.weight', (classes, dim))
    table['head.bias'] = ('decode_head.conv_seg.bias', (classes,))
    modules = depth(state, r'cropr\.(\d+)\.')
    converted = _with_modules(state, table, modules, KIND)
    fuse(converted, 'backbone.', num_heads)
    converted['decode_head.conv_seg.weight'] = converted['decode_head.conv_seg.weight'][:, :, None, None]

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
        _note_modules(notes, state, dim)
    return converted, notes


def _classifier(state, num_heads):
    """Convert a classifier; its modules stand after each layer but the last two, or but the last without fusion."""
    table = classifier_table(state, CLASSIFIER)
    classes, dim = need(state, 'head.weight', CLASSIFIER).shape
    modules, layers = depth(state, r'cropr\.(\d+)\.'), depth(state, r'blocks\.(\d+)\.')
    converted = _with_modules(state, table, modules, CLASSIFIER)
    # The release pools the class token too, as no other does.
    out_type = 'avg_all' if pools(state) else 'cls_token'
    notes = classifier_notes(
        converted, 'cropr', CLASSIFIER, num_heads, out_type, PRUNED_CONFIGS if modules else CONFIGS
    )
    if not pools(state):
        notes.fits = None
    if not modules:
        if pools(state):
            notes.remarks.append(
                "Its head reads the mean of class token and patches, as that of Cropr's release does. A fine-tuned MAE "
                'has the same keys and reads the patches alone: convert that with --source mae.'
            )
        return converted, notes
    r = [9] + [8] * (modules - 1)
    reduction = dict(type='Cropr', task='classification', num_classes=classes, r=r)
    if modules == layers - 1:
        reduction.update(fusion='none', layers=tuple(range(modules)))
    elif modules != layers - 2:
        raise UserError(
            f'The file has {modules} Cropr modules for {layers} layers; {CLASSIFIER} has {layers - 2}, or '
            f'{layers - 1} without last layer fusion.'
        )
    for i in range(modules):
        queries = state[f'cropr.{i}.{QUERIES[0]}'].shape[1]
        if queries != 1:
            raise UserError(f"The file's Cropr modules have {queries} queries; those of {CLASSIFIER} have one.")
    notes.settings.update({f'{REDUCTION}{key}': value for key, value in reduction.items()})
    _note_modules(notes, state, dim)
    notes.remarks.append(
        f'How many tokens leave after each layer is not in the file: {REDUCTION}r={r} is the default of the release, '
        '--cropr_pruning_rate 8 and one more at first; set what it was trained with.'
    )
    return converted, notes


def _with_modules(state, table, modules, kind):
    """Rename the weights of ``table`` and of the Cropr modules."""
    names = [f'backbone.token_reducer.heads.layer_{i:02}.' for i in range(modules)]
    for i, name in enumerate(names):
        table.update(_module_table(state, f'cropr.{i}.', name, kind))
    converted = rename(state, table, kind)
    for name in names:
        converted[f'{name}queries'] = converted[f'{name}queries'].squeeze(0)
    return converted


def _note_modules(notes, state, dim):
    notes.settings.update(_module_settings(state, dim))
    if 'cropr.0.cross_attn.proj.weight' in state:
        notes.remarks.append(
            f'Its Cropr modules have several heads, and the file does not say how many: set {REDUCTION}num_heads.'
        )


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
    return {f'{REDUCTION}{key}': value for key, value in settings.items()}


def _module_table(state, source, target, kind):
    """The table for ``rename`` of the weights that the file has of one Cropr module; loading finds missing ones."""
    table = {source + QUERIES[0]: (target + QUERIES[1], need(state, source + QUERIES[0], kind).shape)}
    for old, new in LINEAR.items():
        for part in ('weight', 'bias'):
            key = f'{source}{old}.{part}'
            if key in state:
                table[key] = (f'{target}{new}.{part}', state[key].shape)
    return table
