"""The parts of EoMT that both heads have: queries, classes, masks, and the upscaling of the patch map."""

from typing import Optional

import torch
import torch.nn.functional as F
from mmdet.models.losses import CrossEntropyLoss, DiceLoss
from mmdet.models.task_modules import MaskPseudoSampler
from mmdet.models.task_modules.assigners import HungarianAssigner
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmtr.declared import Declared
from mmtr.errors import UserError
from mmtr.models.backbones.common.open_outputs import OpenOutputs
from mmtr.settings import SHARE, Flag, Number, Whole


class Upscale(nn.Module):
    """Doubles the resolution of a map: transposed convolution, GELU, depthwise 3x3 convolution, norm.

    Args:
        channels: Number of channels, C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.norm = nn.LayerNorm(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Upscale a map: (B, C, H, W) -> (B, C, 2 H, 2 W)."""
        # A map of tokens has its channels last, and keeps them there: half of the time was spent in moving them.
        return self.norm(self.conv2(F.gelu(self.conv1(x))).movedim(1, -1)).movedim(-1, 1)


class QueryHead(Declared):
    """Base class of a ``Mask2FormerHead`` whose queries run in the last layers of the backbone (EoMT, Sec. 3).

    In training, there is a prediction before each of these layers, too, and the queries of a layer see what their masks
    cover, each query with the probability ``mask_probs`` of the layer: ``mmtr.MaskAnnealingHook`` lets it fall from 1;
    without that hook it is 0. In inference there are no masks, and the last prediction alone.

    Args:
        in_channels: Number of channels of the backbone, C.
        num_classes: Number of classes, K.
        num_queries: Number of learned queries, Q.
        num_query_layers: Number of last layers of the backbone that run with the queries.
        reduce_with_queries: Whether the backbone's reducer acts in these layers too; otherwise all patches get a
            token again before the queries join.
        num_upscale: How often the patch map is doubled before masks are read: twice for patches of 16 pixels.
        num_points, oversample_ratio, importance_sample_ratio: Points that masks are compared at, see mmdet's
            ``Mask2FormerHead``.
        init_cfg: mmengine's.

    Raises:
        UserError: A setting has a value that is not allowed, or does not exist.
    """

    def __init__(
        self,
        in_channels: Whole(1, 2**16),
        num_classes: Whole(1, 2**16) = 150,
        num_queries: Whole(1, 2**16) = 200,
        num_query_layers: Whole(1, 255) = 4,
        reduce_with_queries: Flag() = False,
        num_upscale: Whole(0, 4) = 2,
        num_points: Whole(1, 2**24) = 12544,
        oversample_ratio: Number(least=1) = 3.0,
        importance_sample_ratio: SHARE = 0.75,
        init_cfg: Optional[dict] = None,
    ):
        BaseModule.__init__(self, init_cfg)  # Mask2FormerHead's would build a pixel decoder
        self.num_classes, self.num_queries = num_classes, num_queries
        self.num_query_layers, self.reduce_with_queries = num_query_layers, reduce_with_queries
        self.query = nn.Embedding(num_queries, in_channels)
        self.class_embed = nn.Linear(in_channels, num_classes + 1)
        self.mask_embed = nn.Sequential(
            nn.Linear(in_channels, in_channels),
            nn.GELU(),
            nn.Linear(in_channels, in_channels),
            nn.GELU(),
            nn.Linear(in_channels, in_channels),
        )
        self.upscale = nn.Sequential(*(Upscale(in_channels) for _ in range(num_upscale)))
        self.register_buffer('mask_probs', torch.zeros(num_query_layers), persistent=False)
        # What Mask2FormerHead compares predictions and targets by.
        self.class_weight = [1.0] * num_classes + [0.1]
        self.loss_cls = CrossEntropyLoss(class_weight=self.class_weight, loss_weight=2.0)
        self.loss_mask = CrossEntropyLoss(use_sigmoid=True, loss_weight=5.0)
        self.loss_dice = DiceLoss(naive_dice=True, eps=1.0, loss_weight=5.0)
        self.num_points, self.oversample_ratio = num_points, oversample_ratio
        self.importance_sample_ratio = importance_sample_ratio
        costs = [
            dict(type='mmdet.ClassificationCost', weight=2.0),
            dict(type='mmdet.CrossEntropyLossCost', weight=5.0, use_sigmoid=True),
            dict(type='mmdet.DiceCost', weight=5.0, pred_act=True, eps=1.0),
        ]
        self.assigner, self.sampler = HungarianAssigner(costs), MaskPseudoSampler()

    def init_weights(self) -> None:
        """Leave weights as torch initialises them; Mask2Former's own are of other parts."""
        BaseModule.init_weights(self)

    def forward(self, x: OpenOutputs, batch_data_samples: Optional[list] = None) -> tuple[list[Tensor], list[Tensor]]:
        """Run the last layers of the backbone with the queries, and predict classes and masks.

        Args:
            x: Outputs of a backbone that left these layers to the head.
            batch_data_samples: Unused; mmdet and mmseg pass it.

        Returns:
            Class logits (B, Q, K + 1) and mask logits (B, Q, h, w), a list of each: in training, a prediction before
            each layer with queries, then that of the last layer; in inference, that alone.

        Raises:
            UserError: The outputs are feature maps.
        """
        if not isinstance(x, OpenOutputs):
            raise UserError(
                f'{type(self).__name__} runs the last layers of the backbone itself, so the model must be an mmtr.EoMT '
                'or an mmtr.EncoderDecoder, with a plain ViT of mmtr.'
            )
        # One transfer for all layers, where the probabilities are on a GPU.
        probs = self.mask_probs.tolist() if self.training else ()
        outputs, tokens = [], x.join(self.query.weight)
        for k in range(self.num_query_layers):
            visible = None
            if self.training:
                outputs.append(self._predict(*x.read(tokens)))
                visible = self._visible(outputs[-1][1], tokens.grid, probs[k])
            tokens = x.run(k, tokens, visible)
        outputs.append(self._predict(*x.read(tokens)))
        classes, masks = zip(*outputs)
        return list(classes), list(masks)

    def _predict(self, queries, patches):
        pixels = self.upscale(patches)
        masks = self.mask_embed(queries) @ pixels.flatten(2)
        return self.class_embed(queries), masks.unflatten(2, pixels.shape[2:])

    def _visible(self, masks, grid, prob):
        """Return the patches that each query sees, (B, Q, H * W); all for a share of ``1 - prob`` of the queries."""
        if prob == 0:
            return None
        masks = masks.detach()
        inside = F.interpolate(masks, grid, mode='bilinear', align_corners=False).flatten(2) > 0
        masked = torch.rand(masks.shape[:2], device=masks.device) < prob
        return inside | ~masked.unsqueeze(2)
