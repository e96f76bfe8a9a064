"""Layers of mmcv and mmdet that are slow over tens of thousands of places on a CPU: same weights, same outputs."""

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers.transformer import DeformableDetrTransformerEncoderLayer
from torch import Tensor

from mmtr.ops.deformable import deformable_attention

#: So many places at a time: what is made for all of them is fetched from the system, page by page, at each call.
PIECE = 1536


class DeformableAttention(MultiScaleDeformableAttention):
    """mmcv's weights and outputs; on a CPU, where mmcv samples each map for itself, by ``deformable_attention``."""

    def forward(self, query: Tensor, **kwargs) -> Tensor:
        """Queries (B, Q, C), and by name what mmdet's layers give besides -> (B, Q, C)."""
        if query.device.type != 'cpu':
            return super().forward(query, **kwargs)
        value = kwargs['value']
        # What is seen, once by each query and head, is projected in place of all places where it is less.
        later = query.shape[1] * self.num_heads < value.shape[1]
        return self.look(query, value.unsqueeze(2) if later else self.project(value), later, **kwargs)

    def project(self, value: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, heads, C / heads)."""
        return self.value_proj(value).unflatten(2, (self.num_heads, -1))

    def look(
        self,
        query: Tensor,
        rows: Tensor,
        later: bool,
        query_pos: Tensor,
        reference_points: Tensor,
        spatial_shapes: Tensor,
        level_start_index: Tensor,
        **_,
    ) -> Tensor:
        """``forward`` over rows of ``project``; with ``later`` over (B, N, 1, C) as they are, projected in the end."""
        asking = query + query_pos
        sizes = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(asking).unflatten(2, (*sizes, 2))
        weights = self.attention_weights(asking).unflatten(2, (self.num_heads, -1)).softmax(-1).unflatten(3, sizes[1:])
        centres, extent = reference_points[..., :2], reference_points[..., 2:]
        if extent.shape[-1]:
            # A box: in halves of its size, shared out among the points.
            unit = extent * spatial_shapes.flip(1) / (2 * self.num_points)
            offsets = offsets * unit[:, :, None, :, None]
        seen, inside = deformable_attention(rows, spatial_shapes, level_start_index, centres, offsets, weights)
        if later:
            weight, bias = (
                t.unflatten(0, (self.num_heads, -1)) for t in (self.value_proj.weight, self.value_proj.bias)
            )
            # A sum of projections is the projection of the sum. Beyond the maps there are zeros, without a bias.
            seen = torch.einsum('bqhc,hdc->bqhd', seen, weight) + inside * bias
        return query + self.dropout(self.output_proj(seen.flatten(2)))


class EncoderLayer(DeformableDetrTransformerEncoderLayer):
    """mmdet's weights and outputs; on a CPU for ``PIECE`` places at a time."""

    def _init_layers(self):
        super()._init_layers()
        self.self_attn = DeformableAttention(**self.self_attn_cfg)

    def forward(self, query: Tensor, query_pos: Tensor, reference_points: Tensor, **kwargs) -> Tensor:
        """Places (B, N, C), and by name what mmdet's encoder gives besides -> (B, N, C)."""
        if query.device.type != 'cpu':
            return super().forward(query, query_pos, reference_points=reference_points, **kwargs)
        rows, (first, last) = self.self_attn.project(query), self.norms
        pieces = zip(*(t.split(PIECE, 1) for t in (query, query_pos, reference_points)))
        return torch.cat(
            [
                last(self.ffn(first(self.self_attn.look(x, rows, False, position, points, **kwargs))))
                for x, position, points in pieces
            ],
            1,
        )
