"""Convert the official Segmenter release (ICCV 2021), or ALGM's (CVPR 2024, same layout), to an ``EncoderDecoder``.

The release differs from stock mmseg in five points, which this file resolves: ``proj_patch`` and
``proj_classes`` multiply from the right, the linear head is a Linear and not a 1x1 convolution, the
patch embedding has a bias, every LayerNorm has eps 1e-5, and position tables are resized bilinearly.
The order of the tokens is the same: classes last.
"""

from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from mmtr.errors import UserError

from .vit import (
    IMAGENET,
    SIZES,
    Notes,
    backbone_settings,
    block_table,
    depth,
    fold_patch_bias,
    need,
    read_model,
    rename,
    vit_table,
)

KIND = 'an official Segmenter'
DROPPED = ('encoder.head.weight', 'encoder.head.bias')
DATASETS = {'ade20k': 'ade20k', 'pascal_context': 'pascal-context', 'cityscapes': 'cityscapes'}
NORMALIZATIONS = {'vit': ((127.5, 127.5, 127.5), (127.5, 127.5, 127.5)), 'deit': IMAGENET}


class _VariantLoader(yaml.SafeLoader):
    """Safe YAML loader that also reads Python tuples: the release stores the image size as one."""


_VariantLoader.add_constructor(
    'tag:yaml.org,2002:python/tuple', lambda loader, node: tuple(loader.construct_sequence(node))
)


def read(path: str) -> tuple[dict[str, Tensor], Any]:
    """Read (state, variant) from a folder of the release, or from a checkpoint with ``variant.yml`` beside it.

    Raises:
        UserError: A file cannot be read, or ``variant.yml`` is not there.
    """
    path = Path(path)
    if path.is_dir():
        path = path / 'checkpoint.pth'
    state = read_model(path, KIND)
    file = path.with_name('variant.yml')
    if not file.is_file():
        raise UserError(
            f'{file} is not there: the release comes with it, and it says how the images were '
            'normalised and how many heads the model has.'
        )
    try:
        variant = yaml.load(file.read_text(), Loader=_VariantLoader)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).partition('\n')[0]
        raise UserError(f'{file} cannot be read as YAML: {reason}.') from error
    return state, variant


def convert(state: dict[str, Tensor], variant: Any) -> tuple[dict[str, Tensor], Notes]:
    """Convert the release's keys to ``backbone.*`` and ``decode_head.*``; drop the encoder's unused classifier.

    Args:
        variant: The content of ``variant.yml``.

    Raises:
        UserError: The weights are not those of an official Segmenter, or ``variant`` is of another model.
    """
    if 'encoder.dist_token' in state:
        raise UserError(
            'The encoder is a distilled DeiT with two class tokens (encoder.dist_token), '
            'which the stock ViT, with one, cannot hold.'
        )
    table = vit_table(state, KIND, 'encoder.', 'backbone.')
    dim = len(need(state, 'encoder.patch_embed.proj.weight', KIND))
    linear = 'decoder.head.weight' in state
    if linear:
        classes = len(state['decoder.head.weight'])
        table['decoder.head.weight'] = ('decode_head.conv_seg.weight', (classes, dim))
        table['decoder.head.bias'] = ('decode_head.conv_seg.bias', (classes,))
    else:
        classes = need(state, 'decoder.cls_emb', KIND).numel() // dim
        hidden = len(need(state, 'decoder.blocks.0.mlp.fc1.weight', KIND))
        table.update(_mask_head_table(classes, dim))
        for i in range(depth(state, r'decoder\.blocks\.(\d+)\.')):
            table.update(block_table(f'decoder.blocks.{i}', f'decode_head.layers.{i}', dim, hidden))
    converted = rename(state, table, KIND, DROPPED)

    if linear:
        converted['decode_head.conv_seg.weight'] = converted['decode_head.conv_seg.weight'][:, :, None, None]
    else:
        for key in ('decode_head.patch_proj.weight', 'decode_head.classes_proj.weight'):
            converted[key] = converted[key].t().contiguous()
    fold_patch_bias(converted, 'backbone.')
    settings = backbone_settings(converted, KIND, eps=1e-5, prefix='backbone.')
    if not linear:
        settings['decode_head.num_layers'] = depth(converted, r'decode_head\.layers\.(\d+)\.')
        settings['decode_head.num_heads'] = dim // 64
        settings['decode_head.mlp_ratio'] = hidden // dim
    settings['decode_head.num_classes'] = classes
    return converted, _notes(converted, settings, variant, linear)


def _mask_head_table(classes, dim):
    return {
        'decoder.cls_emb': ('decode_head.cls_emb', (1, classes, dim)),
        'decoder.proj_dec.weight': ('decode_head.dec_proj.weight', (dim, dim)),
        'decoder.proj_dec.bias': ('decode_head.dec_proj.bias', (dim,)),
        'decoder.proj_patch': ('decode_head.patch_proj.weight', (dim, dim)),
        'decoder.proj_classes': ('decode_head.classes_proj.weight', (dim, dim)),
        'decoder.decoder_norm.weight': ('decode_head.decoder_norm.weight', (dim,)),
        'decoder.decoder_norm.bias': ('decode_head.decoder_norm.bias', (dim,)),
        'decoder.mask_norm.weight': ('decode_head.mask_norm.weight', (classes,)),
        'decoder.mask_norm.bias': ('decode_head.mask_norm.bias', (classes,)),
    }


def _notes(state, settings, variant, linear):
    """Complete settings and remarks by ``variant.yml``; raises ``UserError`` if it is of another model."""
    try:
        net = variant['net_kwargs']
        size, heads = tuple(net['image_size']), net['n_heads']
        mean, std = NORMALIZATIONS[net['normalization']]
        said = (net['d_model'], net['n_layers'], net['patch_size'], net['n_cls'])
        dataset = (variant.get('dataset_kwargs') or {}).get('dataset')
        inference = variant.get('inference_kwargs') or {}
        reduction = _token_reduction(variant.get('dataset_kwargs') or {})
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise UserError(
            'variant.yml lacks what describes the model, or names a normalisation other than '
            f'{", ".join(NORMALIZATIONS)}: {error}.'
        ) from error
    keys = ('backbone.embed_dims', 'backbone.num_layers', 'backbone.patch_size', 'decode_head.num_classes')
    found = tuple(settings[key] for key in keys)
    if said != found:
        raise UserError(
            f'variant.yml is of another model: it says {said} for channels, layers, patch size and classes, '
            f'the weights have {found}.'
        )
    patch = settings['backbone.patch_size']
    patches = state['backbone.pos_embed'].shape[1] - 1
    if len(size) != 2 or (size[0] // patch) * (size[1] // patch) != patches:
        raise UserError(
            f'variant.yml is of another model: image_size {size} does not give the {patches} patches of the '
            'position table.'
        )

    settings.update(
        {
            'backbone.img_size': size,
            'backbone.num_heads': heads,
            'backbone.interpolate_mode': 'bilinear',
            'data_preprocessor.mean': mean,
            'data_preprocessor.std': std,
        }
    )
    settings.update({f'backbone.token_reduction.{key}': value for key, value in reduction.items()})
    if 'window_size' in inference and 'window_stride' in inference:
        settings['test_cfg.crop_size'] = (inference['window_size'],) * 2
        settings['test_cfg.stride'] = (inference['window_stride'],) * 2
    remarks = [
        f'The position table stays at {size[0]}x{size[1]}: the config must have that img_size.',
        'Images of other sizes get it resized: with model.backbone.interpolate_mode=bilinear as in the release, so '
        'that the conversion is exact at every size.',
    ]
    if 'im_size' in inference:
        remarks.append(f'It was tested on images resized to a shorter side of {inference["im_size"]} pixels.')

    letter, usual_heads = SIZES.get(found[:2], (None, None))
    fits = None
    if heads == usual_heads and dataset in DATASETS:
        # The names of our configs leave out the size that the paper uses.
        backbone = '' if reduction and letter == 'l' else f'_vit-{letter}'
        fits = f'segmenter{backbone}{"_linear" if linear else ""}{"_algm" if reduction else ""}_{DATASETS[dataset]}.py'
    meta = dict(source='segmenter', dataset=dataset, normalization=net['normalization'], settings=settings)
    return Notes(meta, settings, fits, remarks)


def _token_reduction(said):
    """Settings of ALGM, which its release stores with those of the data; empty for a plain Segmenter."""
    if said.get('patch_type') != 'algm':
        return {}
    (local_layer, global_layer), (rows, columns) = said['selected_layers'], said['merging_window_size']
    if rows != columns:
        raise UserError(f'variant.yml has merging windows of {rows}x{columns} patches: here they must be square.')
    return dict(
        type='ALGM',
        variant='released',
        threshold=said['threshold'],
        local_layer=local_layer,
        global_layer=global_layer,
        window=rows,
    )
