"""Check the model of a config before it is built."""

from collections.abc import Iterator
from typing import Any, Optional

from mmtr.config.types import type_name
from mmtr.errors import UserError

#: What to write in place of a head's ``num_classes=1``.
TWO_CLASSES = (
    'background and foreground are two classes: set num_classes=2, out_channels=1 and '
    "loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True), which has the same weights, and "
    "metainfo=dict(classes=('background', ...)) of the data sets"
)


def type_of(cfg: Any) -> str:
    """Return the name of the class that a config builds, without its package; '' for None or a config without type."""
    return type_name(cfg['type']) if isinstance(cfg, dict) and cfg.get('type') else ''


def inner_model(model: Optional[dict]) -> dict:
    """Return the config of the model inside a test-time-augmentation wrapper; without one, ``model``."""
    return (model or {}).get('module') or model or {}


def segmentation_heads(model: dict) -> Iterator[tuple[str, dict]]:
    """Yield (dotted key, config) of each head of a segmentor."""
    for key in ('decode_head', 'auxiliary_head'):
        heads = model.get(key)
        for i, head in enumerate(heads if isinstance(heads, (list, tuple)) else [heads]):
            if isinstance(head, dict):
                yield f'model.{key}.{i}' if isinstance(heads, (list, tuple)) else f'model.{key}', head


def check_head(key: str, head: dict, model: dict) -> None:
    """Raise a ``UserError`` if the numbers of classes, outputs and weights of a segmentation head do not agree.

    Args:
        key: Dotted key of the head, for the error.
        head: Config of the head.
        model: Config of the model.
    """
    count, out = head.get('num_classes'), head.get('out_channels')
    if not count or 'channels' not in head:  # not derived from BaseDecodeHead, such as Mask2Former's; or of depth
        return
    if count == 1:
        raise UserError(f'{key}.num_classes=1, but {TWO_CLASSES}.')
    if out not in (None, 1, count):
        raise UserError(f'{key}.out_channels={out} must be num_classes={count}, or 1 for background and foreground.')
    losses = head.get('loss_decode') or {}
    for loss in losses if isinstance(losses, (list, tuple)) else [losses]:
        if type_of(loss) != 'CrossEntropyLoss':
            continue
        weights, sigmoid = loss.get('class_weight'), loss.get('use_sigmoid', False)
        if out == 1 and not sigmoid:
            raise UserError(f'{key}.out_channels=1 needs loss_decode.use_sigmoid=True.')
        if isinstance(weights, (list, tuple)) and not sigmoid and len(weights) != count:
            raise UserError(
                f'{key}.loss_decode.class_weight has {len(weights)} weights for num_classes={count}: give one a class.'
            )
        if isinstance(weights, (list, tuple)) and sigmoid and len(weights) > 1:
            raise UserError(
                f'{key}.loss_decode has use_sigmoid=True and {len(weights)} weights in class_weight, which '
                'mmsegmentation takes for weights of the columns of a picture: set use_sigmoid=False.'
            )
    ignored = head.get('ignore_index', 255)
    preprocessor = model.get('data_preprocessor') or {}
    if type_of(preprocessor) == 'SegDataPreProcessor' and preprocessor.get('seg_pad_val', 255) != ignored:
        raise UserError(
            f'model.data_preprocessor.seg_pad_val={preprocessor.get("seg_pad_val", 255)} pads label maps '
            f'with what {key}.ignore_index={ignored} does not ignore: set both to one value.'
        )


def check_test_cfg(model: dict) -> None:
    """Raise a ``UserError`` if ``test_cfg`` has an unknown mode, or a sliding window without size or stride."""
    test = model.get('test_cfg') or {}
    mode = test.get('mode')
    if mode not in ('whole', 'slide'):
        raise UserError(f"model.test_cfg.mode={mode!r} must be 'whole', or 'slide' with crop_size and stride.")
    if mode == 'whole':
        return
    for key in ('crop_size', 'stride'):
        if not isinstance(test.get(key), (list, tuple)) or len(test[key]) != 2:
            raise UserError(
                f"model.test_cfg.mode='slide' needs {key}=(height, width) in pixels, not {test.get(key)!r}."
            )
    if any(step > size for step, size in zip(test['stride'], test['crop_size'])):
        raise UserError(
            f'model.test_cfg.stride={tuple(test["stride"])} is larger than crop_size='
            f'{tuple(test["crop_size"])}, which leaves pixels out: make it smaller, such as two thirds.'
        )


def check_sizes(preprocessor: dict) -> None:
    """Raise a ``UserError`` if a ``SegDataPreProcessor`` would not pad the images of a batch to one size."""
    size, divisor = preprocessor.get('size'), preprocessor.get('size_divisor')
    if (size is None) == (divisor is None):
        raise UserError(
            f'model.data_preprocessor has size={size} and size_divisor={divisor}: training needs one of '
            'them, size as the crop_size of the training pipeline.'
        )
