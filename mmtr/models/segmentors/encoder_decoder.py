"""mmseg's EncoderDecoder with losses of token reducers, restoring after the head, and faster argmax on a CPU."""

from collections.abc import Sequence
from typing import Optional

import torch
from mmengine.structures import PixelData
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.segmentors import encoder_decoder as stock
from mmseg.models.utils import resize
from mmseg.structures import SegDataSample
from mmseg.utils import add_prefix
from torch import Tensor

from mmtr.errors import UserError
from mmtr.models.backbones.common.reduced_outputs import ReducedOutputs, takes_reduced_tokens
from mmtr.models.reduction_losses import ReductionLosses
from mmtr.ops.labels import independent_of_channels
from mmtr.registry import MODELS

from .deferred import DeferredPixelData
from .picture_logits import Canvas, PictureLogits, Window, join

# Methods that ``predict`` replaces on a CPU, unless a subclass or a head overrides one of them.
_SEGMENTOR = ('inference', 'whole_inference', 'slide_inference', 'encode_decode', 'postprocess_result')
_HEAD = ('predict', 'predict_by_feat')
# torch 2.1 has no torch.compiler.is_compiling.
_is_compiling = torch.compiler.is_compiling if hasattr(torch.compiler, 'is_compiling') else torch._dynamo.is_compiling


def _is_stock(owner, base, names):
    return all(getattr(getattr(owner, name), '__func__', None) is getattr(base, name) for name in names)


@MODELS.register_module()
class EncoderDecoder(ReductionLosses, stock.EncoderDecoder):
    """mmseg's ``EncoderDecoder`` with ``ReductionLosses``; arguments, weights and outputs are mmseg's.

    On a CPU, ``predict`` takes the argmax one class at a time, over those classes that can be the largest somewhere.
    The ``seg_logits`` of a sample are computed when they are read. Labels and logits are bit-equal to mmseg's.

    If the backbone's reducer has ``restore_at='after_head'``, the head runs on the reduced tokens, and its logits are
    restored for all patches before they are resized, compared with labels or returned.

    Raises:
        UserError: See ``ReductionLosses``; or, with ``after_head``, the model has a neck, an auxiliary head, a
            backbone that outputs the class token, or a head that depends on neighbouring patches.
    """

    def _num_classes(self):
        return self.num_classes

    def _check_restoring(self):
        way = "token_reduction.restore_at='after_head'{}: set restore_at='before_norm'{}."
        for part in ('neck', 'auxiliary_head'):
            if getattr(self, part, None) is not None:
                raise UserError(way.format(f', and model.{part} needs the full grid of patches', f' or {part}=None'))
        if getattr(self.backbone, 'output_cls_token', False):
            raise UserError(way.format(' hands on patch tokens alone, and the backbone has output_cls_token=True', ''))
        if not takes_reduced_tokens(self.decode_head):
            raise UserError(
                way.format(
                    f', and model.decode_head of type {type(self.decode_head).__name__} as it is set needs the full '
                    'grid of patches',
                    ', or use SegmenterMaskTransformerHead without token_reduction, or FCNHead with '
                    'num_convs=0 and concat_input=False',
                )
            )

    def _logits(self, x):
        """Run the head on the outputs of the backbone, and return its logits (B, classes, H, W)."""
        return x.logits(self.decode_head) if isinstance(x, ReducedOutputs) else self.decode_head.forward(x)

    def encode_decode(self, inputs: Tensor, batch_img_metas: list[dict]) -> Tensor:
        """Predict the logits of a batch of images, (B, classes, height, width), as the stock class."""
        x = self.extract_feat(inputs)
        if isinstance(x, ReducedOutputs):
            return self.decode_head.predict_by_feat(self._logits(x), batch_img_metas)
        return self.decode_head.predict(x, batch_img_metas, self.test_cfg)

    def _forward(self, inputs, data_samples=None):
        return self._logits(self.extract_feat(inputs))

    def _decode_head_forward_train(self, inputs, data_samples):
        if not isinstance(inputs, ReducedOutputs):
            return super()._decode_head_forward_train(inputs, data_samples)
        return add_prefix(self.decode_head.loss_by_feat(self._logits(inputs), data_samples), 'decode')

    def predict(
        self, inputs: Tensor, data_samples: Optional[Sequence[SegDataSample]] = None
    ) -> Sequence[SegDataSample]:
        """Predict labels and logits, as the stock class; see the class for the faster way on a CPU.

        Args:
            inputs: (B, channels, height, width) normalised images.
            data_samples: Data samples, whose metainfo has the sizes of the images; None: those of ``inputs``.

        Returns:
            The data samples with ``pred_sem_seg`` and ``seg_logits``.
        """
        metas = None if data_samples is None else [sample.metainfo for sample in data_samples]
        if not self._can_defer(inputs, metas):
            return super().predict(inputs, data_samples)
        windows, canvas = self._windows(inputs, metas)
        resized = [(window.logits, window.size) for window in windows]
        resized += [(windows[0].logits, meta['ori_shape']) for meta in metas or []]
        if not all(independent_of_channels(logits, size) for logits, size in resized):
            return self.postprocess_result(join(windows, canvas, self.align_corners), data_samples)
        if metas is None:
            data_samples = [SegDataSample() for _ in inputs]
        for i, sample in enumerate(data_samples):
            own = [Window(window.logits[i : i + 1], window.size, window.corner) for window in windows]
            logits = PictureLogits(own, canvas, self.align_corners, metas and metas[i])
            sample.set_data(
                dict(seg_logits=DeferredPixelData(logits.maps), pred_sem_seg=PixelData(data=logits.labels()))
            )
        return data_samples

    def _can_defer(self, inputs, metas):
        return (
            inputs.device.type == 'cpu'
            and self.out_channels > 1
            and not torch.is_grad_enabled()
            and not _is_compiling()
            and self.test_cfg.get('mode') in ('whole', 'slide')
            # With different shapes mmseg warns.
            and (metas is None or all(meta['ori_shape'] == metas[0]['ori_shape'] for meta in metas))
            and _is_stock(self, EncoderDecoder, _SEGMENTOR)
            and _is_stock(self.decode_head, BaseDecodeHead, _HEAD)
        )

    def _windows(self, inputs, metas):
        """Return the logits of each sliding window, and the canvas; in mode ``whole``, one window and None."""
        height, width = inputs.shape[2:]
        if self.test_cfg.mode == 'whole':
            size = (height, width) if metas is None else metas[0]['img_shape']
            if 'pad_shape' in (metas or [{}])[0] and not isinstance(size, torch.Size):
                size = metas[0]['pad_shape'][:2]
            return [Window(self._head_logits(inputs), tuple(size))], None
        (row_step, column_step), (rows, columns) = self.test_cfg.stride, self.test_cfg.crop_size
        windows = []
        for bottom in _ends(height, rows, row_step):
            for right in _ends(width, columns, column_step):
                y, x = max(bottom - rows, 0), max(right - columns, 0)
                logits = self._head_logits(inputs[:, :, y:bottom, x:right])
                windows.append(Window(logits, (bottom - y, right - x), (y, x)))
        return windows, Canvas((height, width), inputs.dtype)

    def _head_logits(self, inputs):
        logits = self._logits(self.extract_feat(inputs))
        # Autocast may change the dtype in resizing, and may be off when the logits are read.
        return logits.to(resize(logits[:1, :1, :1, :1], (1, 1), mode='bilinear').dtype)


def _ends(length, window, step):
    """Return the ends of sliding windows along one side of an image."""
    count = max(length - window + step - 1, 0) // step + 1
    return [min(i * step + window, length) for i in range(count)]
