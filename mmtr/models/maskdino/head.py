"""MaskDINO's head: classes, boxes and masks from the feature maps of a backbone, and their losses."""

import functools
from collections.abc import Sequence
from typing import Callable, NamedTuple, Optional, Union

import torch
from mmdet.models.layers import MLP
from mmdet.structures import DetDataSample
from mmdet.utils import reduce_mean
from mmengine.model import BaseModule, bias_init_with_prob
from mmengine.structures import InstanceData
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.registry import MODELS

from .decoder import MaskDINODecoder, refine
from .denoising import Denoising, NoisyQueries
from .losses import MaskDINOLoss
from .matching import Matcher
from .pixel_decoder import MaskDINOPixelDecoder, flatten_levels
from .queries import INITIAL_BOXES, QuerySelection, boxes_of_masks
from .targets import targets_of


class Prediction(NamedTuple):
    """The predictions of Q queries.

    Args:
        scores: (B, Q, K) class logits; from ``predict``, probabilities.
        boxes: (B, Q, 4) boxes, centre and size in 0 ... 1.
        masks: (B, Q, H / 4, W / 4) mask logits.
    """

    scores: torch.Tensor
    boxes: torch.Tensor
    masks: torch.Tensor


def without_autocast(method: Callable) -> Callable:
    """Run a method in float32 also under autocast: deformable attention and sums over points need it; a decorator."""

    @functools.wraps(method)
    def run(self, x, *args, **kwargs):
        with torch.autocast(x[0].device.type, enabled=False):
            return method(self, [level.float() for level in x], *args, **kwargs)

    return run


@MODELS.register_module()
class MaskDINOHead(BaseModule):
    """Mask DINO: Towards A Unified Transformer-based Framework for Object Detection and Segmentation (CVPR 2023).

    Args:
        in_channels: Numbers of channels of the backbone's four maps, of stride 4 to 32.
        num_things_classes: Number of thing classes, whose labels come first.
        num_stuff_classes: Number of stuff classes. A semantic model has stuff classes only.
        channels: Number of channels of queries and maps; a multiple of 32 and of the number of heads.
        num_queries: Number of queries.
        two_stage: Whether queries are selected from the encoded maps, or learned.
        initial_boxes: Source of the decoder's first boxes, one of ``INITIAL_BOXES``; needs ``two_stage``.
        softmax: Whether to train with cross-entropy over the classes and "no object", or with the focal loss.
        stuff_boxes: Whether stuff is matched and trained with boxes, too.
        pixel_decoder, decoder, denoising, loss: Settings of ``MaskDINOPixelDecoder``, ``MaskDINODecoder``,
            ``Denoising`` (None: no denoising) and ``MaskDINOLoss``.
        train_cfg, test_cfg: Unused; mmdet's detectors pass them.
        init_cfg: mmengine's.

    Raises:
        UserError: A setting has a value that is not allowed, alone or with another one.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        num_things_classes: int = 80,
        num_stuff_classes: int = 0,
        channels: int = 256,
        num_queries: int = 300,
        two_stage: bool = True,
        initial_boxes: str = 'bitmask',
        softmax: bool = False,
        stuff_boxes: bool = False,
        pixel_decoder: Optional[dict] = None,
        decoder: Optional[dict] = None,
        denoising: Union[dict, tuple, None] = (),
        loss: Optional[dict] = None,
        train_cfg: Optional[dict] = None,
        test_cfg: Optional[dict] = None,
        init_cfg: Optional[dict] = None,
    ):
        super().__init__(init_cfg=init_cfg)
        self._check(channels, initial_boxes, two_stage, decoder, pixel_decoder)
        self.num_things_classes, self.num_stuff_classes = num_things_classes, num_stuff_classes
        self.num_classes = num_things_classes + num_stuff_classes
        self.initial_boxes = initial_boxes
        self.pixel_decoder = MaskDINOPixelDecoder(in_channels, channels, **(pixel_decoder or {}))
        self.decoder = MaskDINODecoder(channels, self.pixel_decoder.num_levels, **(decoder or {}))
        self.selection = QuerySelection(channels, num_queries) if two_stage else None
        if not two_stage:
            self.query_feat = nn.Embedding(num_queries, channels)
            self.query_embed = nn.Embedding(num_queries, 4)
        # All layers share these heads.
        self.class_embed = nn.Linear(channels, self.num_classes + softmax)
        self.bbox_embed = MLP(channels, channels, 4, 3)
        self.mask_embed = MLP(channels, channels, channels, 3)
        self.denoising = None if denoising is None else Denoising(self.num_classes, channels, **dict(denoising))
        num_things = None if stuff_boxes or not num_stuff_classes else num_things_classes
        self.loss_of = MaskDINOLoss(self.num_classes, softmax, num_things, **(loss or {}))
        self.match = Matcher(self.loss_of.weights, self.loss_of.num_points, num_things)

    @staticmethod
    def _check(channels, initial_boxes, two_stage, decoder, pixel_decoder):
        heads = [(part or {}).get('num_heads', 8) for part in (decoder, pixel_decoder)]
        if channels % 32 or any(channels % n for n in heads):
            raise UserError(
                f'panoptic_head.channels={channels} must be a multiple of 32 and of the number of heads, '
                f'{" and ".join(map(str, sorted(set(heads))))}.'
            )
        if initial_boxes not in INITIAL_BOXES:
            raise UserError(
                f'panoptic_head.initial_boxes={initial_boxes!r} is unknown: choose '
                f'{", ".join(map(repr, INITIAL_BOXES))}.'
            )
        if not two_stage and initial_boxes != 'no':
            raise UserError(
                f'panoptic_head.initial_boxes={initial_boxes!r} needs two_stage=True: learned queries have '
                "learned boxes, initial_boxes='no'."
            )

    def init_weights(self) -> None:
        """Initialise as the released code, but the class head to probabilities of 1% (focal loss paper, Sec. 4.1)."""
        super().init_weights()
        last = self.bbox_embed.layers[-1]
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        if self.class_embed.out_features == self.num_classes:
            nn.init.constant_(self.class_embed.bias, bias_init_with_prob(0.01))

    def _predict(self, queries, boxes, mask_features):
        # The released code applies the norm of the decoder a second time here.
        queries = self.decoder.norm(queries)
        masks = torch.einsum('bqc,bchw->bqhw', self.mask_embed(queries), mask_features)
        return Prediction(self.class_embed(queries), boxes, masks)

    def _start(self, memory, shapes, mask_features):
        """Return the first queries, their boxes before the sigmoid, and the encoder's ``Prediction``, or None."""
        if self.selection is None:
            learned = self.query_feat.weight, self.query_embed.weight
            return *(weight.expand(len(memory), -1, -1) for weight in learned), None
        chosen, boxes = self.selection(memory, shapes, self.class_embed, self.bbox_embed)
        encoded = None
        if self.training or self.initial_boxes != 'no':
            encoded = self._predict(chosen, boxes.sigmoid(), mask_features)
        if self.initial_boxes != 'no':
            boxes = boxes_of_masks(encoded.masks.detach(), self.initial_boxes)
        return chosen.detach(), boxes.detach(), encoded

    @without_autocast
    def forward(
        self,
        x: Sequence[Tensor],
        batch_data_samples: Optional[Sequence[DetDataSample]] = None,
        targets: Optional[Sequence[InstanceData]] = None,
    ) -> tuple[list[Prediction], Optional[Prediction], Optional[NoisyQueries]]:
        """Predict classes, boxes and masks.

        Args:
            x: Feature maps of the backbone, finest first, (B, C, H, W) each.
            batch_data_samples: Unused; mmdet's detectors pass it.
            targets: Result of ``targets_of``; None: no denoising.

        Returns:
            List of ``Prediction``: in training those of the first queries and of every layer, else of the last layer
            only; the encoder's ``Prediction``, or None; the ``NoisyQueries``, which come first in each prediction of
            the list, or None.
        """
        mask_features, levels = self.pixel_decoder(x)
        memory, shapes, starts = flatten_levels(levels[::-1])
        queries, boxes, encoded = self._start(memory, shapes, mask_features)
        noisy = self.denoising(targets, queries.shape[1]) if targets is not None and self.denoising else None
        if noisy is not None:
            queries, boxes = torch.cat((noisy.content, queries), 1), torch.cat((noisy.boxes, boxes), 1)
        boxes = boxes.sigmoid()
        states, references = self.decoder(
            queries, boxes, memory, shapes, starts, None if noisy is None else noisy.attn_mask, self.bbox_embed
        )
        pairs = list(zip(states, references))
        outputs = [
            self._predict(state, refine(reference, self.bbox_embed(state)), mask_features)
            for state, reference in (pairs if self.training else pairs[-1:])
        ]
        if self.training:
            outputs.insert(0, self._predict(queries, boxes, mask_features))
        return outputs, encoded, noisy

    def predict(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> Prediction:
        """Return the ``Prediction`` of the last layer, with class probabilities in place of logits."""
        scores, boxes, masks = self(x, batch_data_samples)[0][-1]
        softmax = scores.shape[-1] > self.num_classes
        return Prediction(scores.softmax(-1)[..., :-1] if softmax else scores.sigmoid(), boxes, masks)

    @without_autocast
    def loss(self, x: Sequence[Tensor], batch_data_samples: Sequence[DetDataSample]) -> dict[str, Tensor]:
        """Compute the losses ``loss_cls``, ``loss_bbox``, ``loss_giou``, ``loss_mask`` and ``loss_dice`` of each layer.

        Those of the last layer have no prefix; earlier ones have ``d0.`` (first queries) to ``d8.``, the encoder's
        ``enc_``, and those of denoising ``dn_``. As in the released code, ``d0.`` has losses of denoising only with
        ``two_stage``.
        """
        targets = targets_of(batch_data_samples, self.num_things_classes, self.num_stuff_classes, x[0].device)
        outputs, encoded, noisy = self(x, targets=targets)
        total = x[0].new_tensor([sum(len(target.labels) for target in targets)])
        num_objects = reduce_mean(total).clamp(min=1).item()
        losses = {}

        def add(prefix, prediction, indices=None, times=1):
            indices = self.match(prediction, targets) if indices is None else indices
            parts = self.loss_of(prediction, targets, indices, num_objects * times)
            losses.update({f'{prefix}{name}': value for name, value in parts.items()})

        for i, output in enumerate(outputs):
            prefix = '' if i == len(outputs) - 1 else f'd{i}.'
            slots = 0 if noisy is None else noisy.content.shape[1]
            add(prefix, Prediction(*(part[:, slots:] for part in output)))
            if i == 0 and self.selection is None:
                continue
            if noisy is not None:
                add(f'{prefix}dn_', Prediction(*(part[:, :slots] for part in output)), noisy.indices, noisy.num_groups)
            elif self.denoising is not None:
                # Data-parallel training needs the same losses in all processes, and every parameter in them.
                nothing = self.denoising.label_embed.weight.sum() * 0
                losses.update({f'{prefix}dn_loss_{name}': nothing for name in self.loss_of.weights})
        if encoded is not None:
            add('enc_', encoded)
        return losses
