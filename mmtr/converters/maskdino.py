"""Convert the official MaskDINO checkpoints (detectron2's keys) to ``mmtr.MaskDINO``."""

import re

import torch
from torch import Tensor

from mmtr.errors import UserError

from . import swin
from .resnet import count_batches, resnet_table
from .vit import Notes, depth, need, read_model, rename

KIND = 'an official MaskDINO'
PIXEL, PREDICTOR = 'sem_seg_head.pixel_decoder.', 'sem_seg_head.predictor.'
HEAD, OURS = 'panoptic_head.', 'panoptic_head.pixel_decoder.'
HEADS, POINTS = 8, 4
# Constants in the release's modules.
DROPPED = ('criterion.empty_weight', 'pixel_mean', 'pixel_std')
# Number of classes -> number of things, and the data set in the names of our configs. With any other number of classes
# all are things.
DATA = {
    80: (80, 'coco-instance'),
    133: (80, 'coco-panoptic'),
    150: (0, 'ade20k-semantic'),
    19: (0, 'cityscapes-semantic'),
}


def read(path: str) -> tuple[dict[str, Tensor]]:
    """Read (state, ) from a checkpoint of the release; raises ``UserError``."""
    return (read_model(path, KIND),)


def convert(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], Notes]:
    """Convert the release's keys to ``backbone.*`` and ``panoptic_head.*``.

    The release stores the box head and the last norm under several names; the result holds each once.

    Raises:
        UserError: The weights are not those of an official MaskDINO.
    """
    backbone = {key: state[key] for key in state if key.startswith('backbone.')}
    state = _without_copies({key: value for key, value in state.items() if key not in backbone})
    table, settings = _head_table(state)
    converted = rename(state, table, KIND, DROPPED)
    weights, found, name = (_swin if 'backbone.patch_embed.proj.weight' in backbone else _resnet)(backbone)
    converted.update(weights)
    settings.update(found)

    classes = len(state[f'{PREDICTOR}label_enc.weight'])
    things, data = DATA.get(classes, (classes, None))
    settings.update({f'{HEAD}num_things_classes': things, f'{HEAD}num_stuff_classes': classes - things})
    notes = Notes(dict(source='maskdino', settings=settings), settings, data and f'maskdino_{name}_{data}.py')
    if settings[f'{HEAD}two_stage']:
        notes.remarks.append(
            'Whether it was trained with mask-enhanced boxes is not in the file: where its name says '
            "'maskenhanced' it needs panoptic_head.initial_boxes='bitmask' or 'mask2box', else 'no'. "
            'For the ResNet-50 of hid2048 the release has a config of each, and its table names '
            "'mask2box'."
        )
    return converted, notes


def _without_copies(state):
    """Drop the second names of weights that the release stores several times; raises ``UserError`` if they differ."""
    names = {'decoder.norm.': 'decoder_norm.'}
    for i in range(depth(state, PREDICTOR.replace('.', r'\.') + r'decoder\.layers\.(\d+)\.')):
        names |= {f'bbox_embed.{i}.': '_bbox_embed.', f'decoder.bbox_embed.{i}.': '_bbox_embed.'}
    kept = dict(state)
    for copy, name in names.items():
        for key in [key for key in kept if key.startswith(PREDICTOR + copy)]:
            first = PREDICTOR + name + key.removeprefix(PREDICTOR + copy)
            if not torch.equal(kept.pop(key), need(state, first, KIND)):
                raise UserError(f'{key!r} and {first!r} differ: in {KIND} all layers share one box head and one norm.')
    return kept


class _Table(dict):
    """Table for ``rename`` with methods that add the weights of one module each."""

    def add(self, old, new, *shape, bias=True):
        self[f'{old}.weight'] = (f'{new}.weight', shape)
        if bias:
            self[f'{old}.bias'] = (f'{new}.bias', shape[:1])

    def mlp(self, old, new, *widths):
        for i, (n_in, n_out) in enumerate(zip(widths, widths[1:])):
            self.add(f'{old}.layers.{i}', f'{new}.layers.{i}', n_out, n_in)

    def deformable(self, old, new, channels, levels):
        samples = HEADS * levels * POINTS
        for name, rows in dict(
            sampling_offsets=2 * samples, attention_weights=samples, value_proj=channels, output_proj=channels
        ).items():
            self.add(f'{old}.{name}', f'{new}.{name}', rows, channels)

    def feed_forward(self, old, new, channels, hidden):
        self.add(f'{old}.linear1', f'{new}.ffn.layers.0.0', hidden, channels)
        self.add(f'{old}.linear2', f'{new}.ffn.layers.1', channels, hidden)


def _head_table(state):
    table, settings = _Table(), {}
    levels, channels = need(state, f'{PIXEL}transformer.level_embed', KIND).shape
    _pixel_table(table, settings, state, levels, channels)
    _predictor_table(table, settings, state, levels, channels)
    settings[f'{HEAD}channels'] = channels
    return table, settings


def _pixel_table(table, settings, state, levels, channels):
    kernels = [need(state, f'{PIXEL}input_proj.{i}.0.weight', KIND) for i in range(levels)]
    encoded = sum(kernel.shape[-1] == 1 for kernel in kernels)
    # The release has two orders of the levels; here the convolutions always start at the finest level.
    coarse_first = encoded > 1 and kernels[0].shape[1] > kernels[1].shape[1]
    for i, kernel in enumerate(kernels):
        new = f'input_convs.{encoded - 1 - i if coarse_first else i}' if i < encoded else f'extra_convs.{i - encoded}'
        table.add(f'{PIXEL}input_proj.{i}.0', f'{OURS}{new}.conv', channels, *kernel.shape[1:])
        table.add(f'{PIXEL}input_proj.{i}.1', f'{OURS}{new}.gn', channels)
    table[f'{PIXEL}transformer.level_embed'] = (f'{OURS}level_embed', (levels, channels))
    hidden = len(need(state, f'{PIXEL}transformer.encoder.layers.0.linear1.weight', KIND))
    layers = depth(state, PIXEL.replace('.', r'\.') + r'transformer\.encoder\.layers\.(\d+)\.')
    for i in range(layers):
        old, new = f'{PIXEL}transformer.encoder.layers.{i}', f'{OURS}encoder.layers.{i}'
        table.deformable(f'{old}.self_attn', f'{new}.self_attn', channels, levels)
        table.feed_forward(old, new, channels, hidden)
        for j in (1, 2):
            table.add(f'{old}.norm{j}', f'{new}.norms.{j - 1}', channels)
    for i in range(depth(state, PIXEL.replace('.', r'\.') + r'adapter_(\d+)\.') - 1):
        width = need(state, f'{PIXEL}adapter_{i + 1}.weight', KIND).shape[1]
        for old, new, shape in (
            (f'adapter_{i + 1}', f'lateral_convs.{i}', (width, 1, 1)),
            (f'layer_{i + 1}', f'output_convs.{i}', (channels, 3, 3)),
        ):
            table.add(PIXEL + old, f'{OURS}{new}.conv', channels, *shape, bias=False)
            table.add(f'{PIXEL}{old}.norm', f'{OURS}{new}.gn', channels)
    table.add(f'{PIXEL}mask_features', f'{OURS}mask_feature', channels, channels, 1, 1)
    settings.update(
        {
            f'{OURS}num_encoder_levels': encoded,
            f'{OURS}num_extra_levels': levels - encoded,
            f'{OURS}num_layers': layers,
            f'{OURS}feedforward_channels': hidden,
            f'{OURS}feature_order': 'high2low' if coarse_first else 'low2high',
        }
    )


def _predictor_table(table, settings, state, levels, channels):
    hidden = len(need(state, f'{PREDICTOR}decoder.layers.0.linear1.weight', KIND))
    layers = depth(state, PREDICTOR.replace('.', r'\.') + r'decoder\.layers\.(\d+)\.')
    for i in range(layers):
        old, new = f'{PREDICTOR}decoder.layers.{i}', f'{HEAD}decoder.layers.{i}'
        table.deformable(f'{old}.cross_attn', f'{new}.cross_attn', channels, levels)
        table.feed_forward(old, new, channels, hidden)
        for kind, shape in dict(weight=(3 * channels, channels), bias=(3 * channels,)).items():
            table[f'{old}.self_attn.in_proj_{kind}'] = (f'{new}.self_attn.attn.in_proj_{kind}', shape)
        table.add(f'{old}.self_attn.out_proj', f'{new}.self_attn.attn.out_proj', channels, channels)
        # Self-attention comes first, and its norm is the release's second.
        for j, norm in enumerate((2, 1, 3)):
            table.add(f'{old}.norm{norm}', f'{new}.norms.{j}', channels)
    classes = len(need(state, f'{PREDICTOR}label_enc.weight', KIND))
    rows = len(need(state, f'{PREDICTOR}class_embed.weight', KIND))
    table.mlp(f'{PREDICTOR}decoder.ref_point_head', f'{HEAD}decoder.ref_point_head', 2 * channels, channels, channels)
    table.add(f'{PREDICTOR}decoder_norm', f'{HEAD}decoder.norm', channels)
    table.add(f'{PREDICTOR}class_embed', f'{HEAD}class_embed', classes + (rows > classes), channels)
    table.add(f'{PREDICTOR}label_enc', f'{HEAD}denoising.label_embed', classes, channels, bias=False)
    table.mlp(f'{PREDICTOR}mask_embed', f'{HEAD}mask_embed', *[channels] * 4)
    table.mlp(f'{PREDICTOR}_bbox_embed', f'{HEAD}bbox_embed', *[channels] * 3, 4)
    learned = f'{PREDICTOR}query_feat.weight' in state
    if learned:
        queries = len(state[f'{PREDICTOR}query_feat.weight'])
        table.add(f'{PREDICTOR}query_feat', f'{HEAD}query_feat', queries, channels, bias=False)
        table.add(f'{PREDICTOR}query_embed', f'{HEAD}query_embed', queries, 4, bias=False)
        settings.update({f'{HEAD}num_queries': queries, f'{HEAD}initial_boxes': 'no'})
    else:
        table.add(f'{PREDICTOR}enc_output', f'{HEAD}selection.linear', channels, channels)
        table.add(f'{PREDICTOR}enc_output_norm', f'{HEAD}selection.norm', channels)
    settings.update(
        {
            f'{HEAD}decoder.num_layers': layers,
            f'{HEAD}decoder.feedforward_channels': hidden,
            f'{HEAD}two_stage': not learned,
            f'{HEAD}softmax': rows > classes,
        }
    )


def _resnet(state):
    """(weights, settings, name in our configs) of a ResNet backbone."""
    table, layers = resnet_table(state, KIND, 'backbone.', 'backbone.')
    counted = [key for key in state if key.endswith('num_batches_tracked')]  # a SyncBN's; a frozen norm has none
    weights = rename(state, table, KIND, counted)
    count_batches(weights)
    return weights, {'backbone.depth': layers}, f'r{layers}'


def _swin(state):
    """As ``_resnet`` for a Swin, whose official keys are joined by a norm for each feature map."""
    state = {key.removeprefix('backbone.'): value for key, value in state.items()}
    norms = {key: state.pop(key).float() for key in list(state) if re.match(r'norm\d\.', key)}
    weights, notes = swin.convert(state)
    indices = {
        re.sub('layers(.*)attn', r'stages\1attn.w_msa', key): value
        for key, value in state.items()
        if key.endswith('relative_position_index')
    }
    letter = swin.SIZES.get((notes.settings['backbone.embed_dims'], notes.settings['backbone.depths']))
    weights = {f'backbone.{key}': value for key, value in {**weights, **norms, **indices}.items()}
    return weights, notes.settings, f'swin-{letter}'
