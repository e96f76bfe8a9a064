"""Declarations of the arguments of backbones, stock ones included, and checks of arguments against each other."""

from collections.abc import Sequence
from typing import Any, Optional, Union

from mmengine.registry import MODELS, WEIGHT_INITIALIZERS
from torch import nn

from mmtr.errors import UserError
from mmtr.ops.attention import BACKENDS
from mmtr.settings import (
    PROBABILITY,
    Choice,
    Config,
    Flag,
    Listed,
    Maybe,
    Number,
    OneOrMore,
    Pair,
    Setting,
    Text,
    Unfit,
    Whole,
)


def is_norm(kind: type) -> bool:
    """Say whether a norm class normalises the last axis, the channels of tokens."""
    return issubclass(kind, nn.LayerNorm) or 'RMSNorm' in kind.__name__


class Initialisation(Setting):
    """Declaration of mmengine's ``init_cfg``.

    Args:
        of_file: Whether it must name a checkpoint file.
    """

    def __init__(self, of_file: bool = False):
        self.of_file = of_file

    def words(self, depth: Optional[int] = None) -> str:
        """Describe the allowed values, see ``Setting``."""
        found = "dict(type='Pretrained', checkpoint='...')"
        return found if self.of_file else f"{found}, or dict(type='...', ...) of another one, or a list of these"

    def take(self, value: Any, depth: Optional[int] = None) -> Any:
        """Check and convert a value, see ``Setting``."""
        each = value if isinstance(value, list) and value and not self.of_file else [value]
        if not all(map(self._fits, each)):
            raise Unfit
        return value

    def _fits(self, cfg):
        kind = cfg.get('type') if isinstance(cfg, dict) else None
        if kind in ('Pretrained', 'Pretrained_Part'):  # the second one is of mmseg's ViT
            return isinstance(cfg.get('checkpoint'), str)
        return (
            not self.of_file
            and isinstance(kind, (str, type))
            and bool(kind)
            and (isinstance(kind, type) or WEIGHT_INITIALIZERS.get(kind) is not None)
        )


CHANNELS = Whole(1, 2**14)
DEPTH = Whole(1, 256)
PATCH = Whole(1, 256)
PIXELS = Pair(Whole(1, 2**13), '(height, width)')
HEADS = Whole(1, 256)
RATIO = Number(above=0, most=64)
#: Negative indices are counted from the end; ``which_layers`` checks them against the depth.
OUTPUTS = OneOrMore(Whole(-256, 255), least=1)
NORM = Config(MODELS, is_norm, 'a norm of tokens, such as LN')
ACTIVATION = Config(MODELS, lambda kind: not is_norm(kind), 'an activation')
ATTN_BACKEND = Choice(*BACKENDS)
FILE = Maybe(Text('the path of a checkpoint'))
INIT = Maybe(Initialisation())

#: Declarations of the arguments of mmseg's backbones, by name.
STOCK = dict(
    {
        name: Flag()
        for name in (
            'out_origin',
            'qkv_bias',
            'with_cls_token',
            'output_cls_token',
            'patch_norm',
            'patch_bias',
            'pre_norm',
            'final_norm',
            'norm_eval',
            'with_cp',
            'use_abs_pos_embed',
        )
    },
    **{name: PROBABILITY for name in ('drop_rate', 'attn_drop_rate', 'drop_path_rate')},
    img_size=PIXELS,
    pretrain_img_size=PIXELS,
    patch_size=PATCH,
    patch_pad=Choice('corner', 'same'),
    in_channels=Whole(1, 1024),
    embed_dims=CHANNELS,
    num_layers=DEPTH,
    num_fcs=Whole(2, 16),
    out_indices=OUTPUTS,
    norm_cfg=NORM,
    act_cfg=ACTIVATION,
    interpolate_mode=Choice('bicubic', 'bilinear'),
    frozen_exclude=Listed(Text()),
    pretrained=FILE,
    init_cfg=INIT,
)


def drop_path_rates(rate: Union[float, tuple[float, ...]], depth: int) -> Sequence[float]:
    """Return the drop path probability of each layer.

    Args:
        rate: That of the last layer, rising linearly from 0 in the first; or one for each layer.
        depth: Number of layers.

    Raises:
        UserError: There are more or fewer probabilities than layers.
    """
    rates = rate if isinstance(rate, tuple) else [rate * i / max(depth - 1, 1) for i in range(depth)]
    if len(rates) != depth:
        raise UserError(
            f'drop_path_rate={rate!r} has {len(rates)} probabilities for {depth} layers: give one for each or for all.'
        )
    return rates


def check_start(pretrained: Optional[str], init_cfg: Optional[dict]) -> None:
    """Raise a ``UserError`` if both ``pretrained`` and ``init_cfg`` are given."""
    if pretrained is not None and init_cfg is not None:
        raise UserError(
            f'pretrained={pretrained!r} and init_cfg={init_cfg!r} both say where weights come from: give one of them.'
        )


def check_heads(embed_dims: int, num_heads: int, multiple: int = 1) -> None:
    """Raise a ``UserError`` unless ``embed_dims`` is divisible by ``num_heads`` times ``multiple``."""
    if embed_dims % (num_heads * multiple):
        each = '' if multiple == 1 else f', a multiple of {multiple}'
        raise UserError(
            f'embed_dims={embed_dims} and num_heads={num_heads} do not fit: each head must get as many channels{each}.'
        )


def check_patches(img_size: tuple[int, int], patch_size: int) -> None:
    """Raise a ``UserError`` if ``img_size``, (height, width) in pixels, is smaller than a patch."""
    if min(img_size) < patch_size:
        raise UserError(
            f'img_size={img_size} is smaller than one patch of patch_size={patch_size}: give the pixels of '
            'a training image.'
        )


def which_layers(key: str, layers: Union[int, Sequence[int]], depth: int) -> tuple[int, ...]:
    """Convert indices of layers to a tuple counted from 0.

    Args:
        key: Name of the argument, for error messages.
        layers: One or several indices; negative ones are counted from the end.
        depth: Number of layers.

    Raises:
        UserError: There is no such layer, or the layers are not in ascending order.
    """
    each = (layers,) if isinstance(layers, int) else tuple(layers)
    for layer in each:
        if not -depth <= layer < depth:
            raise UserError(f'{key}={layers!r} names layer {layer!r}: this backbone has layers 0 to {depth - 1}.')
    each = tuple(layer % depth for layer in each)
    if any(a >= b for a, b in zip(each, each[1:])):
        raise UserError(f'{key}={layers!r} must be in rising order, each layer once.')
    return each
