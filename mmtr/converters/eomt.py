"""Convert EoMT, of tue-mps/eomt or Hugging Face, to ``mmtr.EoMT``, or to ``mmtr.EncoderDecoder`` if it is semantic.

The encoder is handed on to the sources ``dinov2`` and ``dinov3`` in their own layouts. The release's files of models on
DINOv3 hold the difference of the encoder from the pretrained one, which is added here.
"""

import re
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from mmtr.errors import UserError
from mmtr.weights.files import read_checkpoint

from . import dinov2, dinov3
from .vit import SIZES, Notes, depth, need, rename

KIND = 'an EoMT'
# Of losses, masks and the normalisation of images.
DROPPED = ('criterion.empty_weight', 'attn_mask_probs', 'encoder.pixel_mean', 'encoder.pixel_std')
#: Names of the head: ours, the release's (behind 'network.'), Hugging Face's.
HEADS = (
    ('query', 'q', 'query'),
    ('class_embed', 'class_head', 'class_predictor'),
    ('mask_embed.0', 'mask_head.0', 'mask_head.fc1'),
    ('mask_embed.2', 'mask_head.2', 'mask_head.fc2'),
    ('mask_embed.4', 'mask_head.4', 'mask_head.fc3'),
    ('upscale', 'upscale', 'upscale_block.block'),
)
#: Hugging Face's names in the encoder, and DINOv2's.
DINOV2 = {
    'embeddings.patch_embeddings.projection.': 'patch_embed.proj.',
    'embeddings.position_embeddings.weight': 'pos_embed',
    'embeddings.': '',
    'layernorm.': 'norm.',
    r'layers\.(\d+)\.attention\.out_proj\.': r'blocks.\1.attn.proj.',
    r'layers\.(\d+)\.attention\.': r'blocks.\1.attn.',
    r'layers\.(\d+)\.layer_scale(\d)\.lambda1': r'blocks.\1.ls\2.gamma',
    r'layers\.(\d+)\.mlp\.weights_in\.': r'blocks.\1.mlp.w12.',
    r'layers\.(\d+)\.mlp\.weights_out\.': r'blocks.\1.mlp.w3.',
    r'layers\.': 'blocks.',
}
#: Number of layers of the encoder -> number of those with queries, in the released models.
QUERY_LAYERS = {12: 3, 24: 4, 40: 5}
#: Number of classes -> number of things, and the data set in the names of our configs. With any other number of classes
#: all are things.
DATA = {80: (80, 'coco-instance'), 133: (80, 'coco-panoptic'), 150: (100, 'ade20k-panoptic')}
SEMANTIC = {150: 'ade20k-semantic', 19: 'cityscapes-semantic'}
SEMANTIC_QUERIES = 100
#: Classes of ADE20K, of 150 in their own order, that are stuff; mmdet's ``ADE20KPanopticDataset`` has them last.
STUFF = (
    *(0, 1, 2, 3, 4, 5, 6, 9, 11, 13, 16, 17, 21, 25, 26, 28, 29, 34, 40, 46, 48, 51, 52, 54, 59, 60, 61, 63, 68, 77),
    *(79, 84, 91, 94, 96, 99, 100, 101, 105, 106, 109, 113, 114, 117, 122, 128, 131, 140, 141, 145),
)


def read(path: str, base: Optional[str] = None) -> tuple[dict[str, Tensor], Optional[dict[str, Tensor]]]:
    """Read (state, state of ``base``) from the release's ``pytorch_model.bin``, or a file of Lightning or Hugging Face.

    Args:
        base: File of the pretrained DINOv3, see ``convert``.

    Raises:
        UserError: A file cannot be read.
    """
    checkpoint = read_checkpoint(path)
    state = checkpoint.get('state_dict', checkpoint)
    state = {key.replace('._orig_mod', ''): value for key, value in state.items()}
    return state, None if base is None else dinov3.read(base)[0]


def convert(state: dict[str, Tensor], base: Optional[dict[str, Tensor]] = None) -> tuple[dict[str, Tensor], Notes]:
    """Convert the keys to ``backbone.*`` and ``panoptic_head.*``, or ``decode_head.*`` for a semantic model.

    A model is semantic if it has 100 queries and the classes of ADE20K or Cityscapes.

    Args:
        base: The pretrained DINOv3, which the release's files of models on DINOv3 hold the difference from.

    Raises:
        UserError: The weights are not those of an EoMT; or ``base`` is needed, not needed, or of another size.
    """
    state = {key.removeprefix('network.'): value for key, value in state.items()}
    layout = 1 if 'q.weight' in state else 2
    names = tuple(f'{each[layout]}.' for each in HEADS)
    head = {key: value for key, value in state.items() if key.startswith(names)}
    encoder = {key: value for key, value in state.items() if key not in head and key not in DROPPED}
    queries, dim = need(head, f'{names[0]}weight', KIND).shape
    classes = len(need(head, f'{names[1]}weight', KIND)) - 1
    head = rename(head, _head_table(head, layout, queries, classes, dim), KIND)

    weights, notes = (_of_release if layout == 1 else _of_hugging_face)(encoder, base)
    layers = notes.settings['backbone.num_layers']
    # Of each query layer the file has the probability of masks, if it has any.
    query_layers = len(state['attn_mask_probs']) if 'attn_mask_probs' in state else QUERY_LAYERS.get(layers, 4)
    settings = dict(in_channels=dim, num_queries=queries, num_query_layers=query_layers)
    semantic = queries == SEMANTIC_QUERIES and SEMANTIC.get(classes)
    if semantic:
        prefix, data = 'decode_head', semantic
        settings['num_classes'] = classes
    else:
        prefix, (things, data) = 'panoptic_head', DATA.get(classes, (classes, None))
        settings |= dict(num_things_classes=things, num_stuff_classes=classes - things)
        if data == 'ade20k-panoptic':
            order = [*(i for i in range(classes) if i not in STUFF), *STUFF, classes]
            head |= {key: head[key][order] for key in head if key.startswith('class_embed.')}
            notes.remarks.append("Classes have mmdet's order, things first.")
    converted = {f'backbone.{key}': value for key, value in weights.items()}
    converted |= {f'{prefix}.{key}': value for key, value in head.items()}
    notes.settings |= {f'{prefix}.{key}': value for key, value in settings.items()}
    notes.meta = dict(source='eomt', settings=notes.settings)
    letter = SIZES.get((dim, layers), (None,))[0]
    if letter and data:
        side = '' if semantic else '-1280' if notes.settings.get('backbone.img_size') == (1280, 1280) else '-640'
        notes.fits = f'eomt_dinov{2 if "pos_embed" in weights else 3}-{letter}_{data}{side}.py'
    return converted, notes


def _head_table(state, layout, queries, classes, dim):
    """The table for ``rename`` of the head."""
    ours, theirs = ([f'{each[i]}.' for each in HEADS] for i in (0, layout))
    table = {f'{theirs[0]}weight': (f'{ours[0]}weight', (queries, dim))}

    def add(name, new_name, *shape):
        table[f'{name}.weight'], table[f'{name}.bias'] = (f'{new_name}.weight', shape), (f'{new_name}.bias', shape[:1])

    add(theirs[1][:-1], ours[1][:-1], classes + 1, dim)
    for name, new_name in zip(theirs[2:5], ours[2:5]):
        add(name[:-1], new_name[:-1], dim, dim)
    for i in range(depth(state, re.escape(theirs[5]) + r'(\d+)\.')):
        old, new = f'{theirs[5]}{i}', f'{ours[5]}{i}'
        add(f'{old}.conv1', f'{new}.conv1', dim, dim, 2, 2)
        table[f'{old}.conv2.weight'] = (f'{new}.conv2.weight', (dim, 1, 3, 3))
        add(f'{old}.{"norm" if layout == 1 else "layernorm2d"}', f'{new}.norm', dim)
    return table


def _of_release(state, base):
    """(weights, notes) of an encoder of the release: timm's DINOv2, or a DINOv3 of Hugging Face under timm's names."""
    state = {key.removeprefix('encoder.backbone.'): value for key, value in state.items()}
    if 'patch_embed.cls_token' in state:
        names = {'patch_embed.': 'embeddings.', 'blocks.': 'layer.'}
        return _of_dinov3({_begun(key, names): value for key, value in state.items()}, base)
    return _of_dinov2({key.replace('reg_token', 'register_tokens'): value for key, value in state.items()}, base)


def _of_hugging_face(state, base):
    """(weights, notes) of an encoder of Hugging Face."""
    if 'embeddings.patch_embeddings.weight' in state:
        names = {'layers.': 'layer.', 'layernorm.': 'norm.'}
        return _of_dinov3({_begun(key, names): value for key, value in state.items()}, base)
    state = dict(state)
    for i in range(depth(state, r'layers\.(\d+)\.')):
        for kind in ('weight', 'bias'):
            names = [f'layers.{i}.attention.{name}_proj.{kind}' for name in 'qkv']
            state[f'layers.{i}.attention.qkv.{kind}'] = torch.cat([need(state, name, KIND) for name in names])
            for name in names:
                del state[name]
    positions = 'embeddings.position_embeddings.weight'
    state[positions] = need(state, positions, KIND).unsqueeze(0)
    return _of_dinov2({_in_dinov2(key): value for key, value in state.items()}, base)


def _begun(key, names):
    """``key`` with another beginning, by ``names``."""
    old = next((old for old in names if key.startswith(old)), '')
    return names.get(old, '') + key.removeprefix(old)


def _in_dinov2(key):
    """DINOv2's name of a weight of Hugging Face's."""
    pattern = next((pattern for pattern in DINOV2 if re.match(pattern, key)), '')
    return re.sub(f'^{pattern}', DINOV2.get(pattern, ''), key)


def _of_dinov2(state, base):
    """(weights, notes) of a DINOv2 whose class token has its position in it already."""
    _refuse_base(base)
    # Gate and value of the giant's FFN are joined, in timm without a name of their own.
    first, last = (state.get(f'blocks.0.mlp.fc{i}.weight') for i in (1, 2))
    if first is not None and last is not None and len(first) == 2 * last.shape[1]:
        state = {key.replace('mlp.fc1', 'mlp.w12').replace('mlp.fc2', 'mlp.w3'): each for key, each in state.items()}
    need(state, 'register_tokens', KIND)  # without them, timm's table has a place for the class token
    positions = need(state, 'pos_embed', KIND)
    weights, notes = dinov2.convert({**state, 'pos_embed': F.pad(positions, (0, 0, 1, 0))})
    notes.remarks = []
    return weights, notes


def _of_dinov3(state, base):
    """(weights, notes) of a DINOv3 under Hugging Face's names, or of its difference from ``base``."""
    weights, notes = dinov3.convert(state)
    notes.remarks = [
        dinov3.LICENCE,
        'The size of the images is not in the file: COCO has configs for 640 and 1280 pixels.',
    ]
    # The scales of norms are above 0, and changes of them are not.
    scales = torch.cat([value for key, value in weights.items() if re.search(r'norm\d?\.weight$', key)])
    if (scales > 0).float().mean() > 0.9:
        _refuse_base(base)
        return weights, notes
    size = (notes.settings['backbone.embed_dims'], notes.settings['backbone.num_layers'])
    name = f'the pretrained DINOv3 of {size[0]} channels and {size[1]} layers'
    letter = SIZES.get(size, (None,))[0]
    if letter:
        name += f', facebook/dinov3-vit{letter}16-pretrain-lvd1689m'
    if base is None:
        raise UserError(f'The file holds the difference of its encoder from {name}: give the file of that too, --base.')
    pretrained = dinov3.convert(base)[0]
    if {key: value.shape for key, value in pretrained.items()} != {key: value.shape for key, value in weights.items()}:
        raise UserError(f'--base is a DINOv3 of another size: the difference is from {name}.')
    return {key: value + pretrained[key] for key, value in weights.items()}, notes


def _refuse_base(base):
    if base is not None:
        raise UserError(
            '--base is for a file that holds the difference from a DINOv3, and this one is whole: leave it out.'
        )
