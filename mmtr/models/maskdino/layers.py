"""Faster versions, on a CPU, of deformable attention of mmcv and its encoder layer of mmdet; weights are theirs."""

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers.transformer import DeformableDetrTransformerEncoderLayer
from torch import Tensor

from mmtr.ops.deformable import deformable_attention

#: Number of places in a piece: larger temporary tensors would be allocated by the system, page by page, at each call.
PIECE = 1536


class DeformableAttention(MultiScaleDeformableAttention):
    """mmcv's multi-scale deformable attention; on a CPU it is computed by ``mmtr.ops.deformable``."""

    def forward(self, query: Tensor, **kwargs) -> Tensor:
        """Attend with queries (B, Q, C) and the keyword arguments of mmdet's layers: -> (B, Q, C)."""
        if query.device.type != 'cpu':
            return super().forward(query, **kwargs)
        value = kwargs['value']
        # Sums are projected instead of all values if there are fewer of them, one for each query and head.
        later = query.shape[1] * self.num_heads < value.shape[1]
        return self.look(query, value.unsqueeze(2) if later else self.project(value), later, **kwargs)

    def project(self, value: Tensor) -> Tensor:
        """Project values: (B, N, C) -> (B, N, heads, C / heads)."""
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
        """Attend to values (CPU only).

        Args:
            query: (B, Q, C) queries.
            rows: (B, N, heads, C / heads) projected values; with ``later``, (B, N, 1, C) values.
            later: Whether the value projection is applied to the sums instead of the values.
            query_pos: (B, Q, C) position embedding of the queries.
            reference_points: (B, Q, levels, 2 or 4) points, or boxes, in 0 ... 1.
            spatial_shapes: (levels, 2) height and width of each map.
            level_start_index: (levels, ) index of the first value of each map.

        Returns:
            (B, Q, C), with the residual.
        """
        asking = query + query_pos
        sizes = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(asking).unflatten(2, (*sizes, 2))
        weights = self.attention_weights(asking).unflatten(2, (self.num_heads, -1)).softmax(-1).unflatten(3, sizes[1:])
        centres, extent = reference_points[..., :2], reference_points[..., 2:]
        if extent.shape[-1]:
            # Offsets from a box are in units of half its size divided by the number of points.
            unit = extent * spatial_shapes.flip(1) / (2 * self.num_points)
            offsets = offsets * unit[:, :, None, :, None]
        seen, inside = deformable_attention(rows, spatial_shapes, level_start_index, centres, offsets, weights)
        if later:
            weight, bias = (
                t.unflatten(0, (self.num_heads, -1)) for t in (self.value_proj.weight, self.value_proj.bias)
            )
            # The weighted sum commutes with the projection. Samples beyond the maps are zeros, and get no bias.
            seen = torch.einsum('bqhc,hdc->bqhd', seen, weight) + inside * bias
        return query + self.dropout(self.output_proj(seen.flatten(2)))


class EncoderLayer(DeformableDetrTransformerEncoderLayer):
    """mmdet's deformable encoder layer; on a CPU it is computed for ``PIECE`` places at a time."""

    def _init_layers(self):
        super()._init_layers()
        self.self_attn = DeformableAttention(**self.self_attn_cfg)

    def forward(self, query: Tensor, query_pos: Tensor, reference_points: Tensor, **kwargs) -> Tensor:
        """Run the layer on places (B, N, C), with the keyword arguments of mmdet's encoder: -> (B, N, C)."""
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
