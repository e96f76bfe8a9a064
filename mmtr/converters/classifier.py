"""Functions that the sources of whole classifiers share: the model of mmpretrain that their weights need."""

from typing import Optional

from torch import Tensor

from mmtr.errors import UserError

from .vit import IMAGENET, Notes, Table, depth, grid_side, need, patch_embedding

# mmpretrain's ``arch``, by embed_dims, num_layers, num_heads and feedforward_channels.
ARCHS = {
    (192, 12, 3, 768): 'deit-tiny',
    (384, 12, 6, 1536): 'deit-small',
    (768, 12, 12, 3072): 'base',
    (1024, 24, 16, 4096): 'large',
    (1280, 32, 16, 5120): 'huge',
}
HEADS = {size[:2]: size[2] for size in ARCHS}


def head_table(state: dict[str, Tensor], kind: str, old: str, new: str) -> Table:
    """Build the table for ``rename`` of a linear classifier.

    Args:
        old, new: Its names, without the last dot.
    """
    shape = tuple(need(state, f'{old}.weight', kind).shape)
    return {f'{old}.weight': (f'{new}.weight', shape), f'{old}.bias': (f'{new}.bias', shape[:1])}


def classifier_notes(
    state: dict[str, Tensor],
    source: str,
    kind: str,
    num_heads: Optional[int],
    out_type: str,
    fits: dict[tuple[str, int, int], str],
) -> Notes:
    """Return the ``Notes`` of a converted classifier, or of its backbone if it has no head.

    Args:
        state: Converted weights.
        source: Name in ``SOURCES``.
        num_heads: Number of attention heads; None: that of a ViT of this size.
        out_type: What the head reads, see ``mmtr.ClsVisionTransformer``.
        fits: (arch, patch size, image size) -> name of the config for ImageNet-1k.

    Raises:
        UserError: Patches are not square, the position table is no class token and a square, or the number of
            heads is not known or does not fit.
    """
    dim, channels, patch = patch_embedding(state, kind, 'backbone.')
    arch = _arch(state, dim, kind, num_heads)
    size = patch * grid_side(state['backbone.pos_embed'])
    settings = {
        'type': 'mmtr.ImageClassifier',
        'backbone.type': 'mmtr.ClsVisionTransformer',
        'backbone.arch': arch,
        'backbone.img_size': size,
        'backbone.patch_size': patch,
        'backbone.in_channels': channels,
        'backbone.out_type': out_type,
        **_head_settings(state),
        'data_preprocessor.mean': IMAGENET[0],
        'data_preprocessor.std': IMAGENET[1],
        'data_preprocessor.to_rgb': True,
    }
    if 'backbone.ln1.weight' not in state:
        settings['backbone.final_norm'] = False
    known = arch if isinstance(arch, str) else None
    config = fits.get((known, patch, size)) if settings.get('head.num_classes', 1000) == 1000 else None
    return Notes(dict(source=source, settings=settings), settings, config, pretrained='backbone.init_cfg.checkpoint')


def _arch(state, dim, kind, num_heads):
    layers = depth(state, r'backbone\.layers\.(\d+)\.')
    heads = HEADS.get((dim, layers)) if num_heads is None else num_heads
    if heads is None:
        raise UserError(
            f'The file does not hold the number of attention heads, and {kind} of {dim} channels and {layers} layers '
            'is none of those that were released: give it, --num-heads.'
        )
    if heads < 1 or dim % heads:
        raise UserError(f'--num-heads {heads} does not divide the {dim} channels of the file.')
    hidden = len(state['backbone.layers.0.ffn.layers.0.0.weight'])
    return ARCHS.get(
        (dim, layers, heads, hidden),
        dict(embed_dims=dim, num_layers=layers, num_heads=heads, feedforward_channels=hidden),
    )


def _head_settings(state):
    if 'head.fc.weight' in state:
        classes, dim = state['head.fc.weight'].shape
        return {'head.type': 'LinearClsHead', 'head.num_classes': classes, 'head.in_channels': dim}
    if 'head.layers.head.weight' not in state:
        return {}
    classes, dim = state['head.layers.head.weight'].shape
    settings = {'head.type': 'VisionTransformerClsHead', 'head.num_classes': classes, 'head.in_channels': dim}
    if 'head.layers.pre_logits.weight' in state:
        hidden, dim = state['head.layers.pre_logits.weight'].shape
        settings.update({'head.in_channels': dim, 'head.hidden_dim': hidden})
    return settings
