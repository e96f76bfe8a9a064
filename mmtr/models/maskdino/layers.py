"""Two layers of mmcv that are slow over tens of thousands of places on a CPU: same weights, same outputs."""
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmcv.ops import MultiScaleDeformableAttention

from mmtr.ops.deformable import deformable_attention

#: So many places at a time: what is made for all of them is fetched from the system, page by page, at each call.
PIECE = 2048


class PiecewiseFFN(FFN):
    """mmcv's FFN, on a CPU for ``PIECE`` places at a time."""

    def forward(self, x):
        """(B, N, C) -> (B, N, C)."""
        if x.device.type != 'cpu':
            return super().forward(x)
        return torch.cat([super(PiecewiseFFN, self).forward(piece) for piece in x.split(PIECE, 1)], 1)


class DeformableAttention(MultiScaleDeformableAttention):
    """mmcv's weights and outputs; on a CPU, where mmcv samples each map for itself, by ``deformable_attention``."""

    def forward(self, query, **kwargs):
        """Queries (B, Q, C), and by name what mmdet's layers give besides -> (B, Q, C)."""
        return (self._in_pieces if query.device.type == 'cpu' else super().forward)(query, **kwargs)

    def _in_pieces(self, query, value, query_pos, reference_points, spatial_shapes, level_start_index, **_):
        # Where the queries are few, what they see is projected, not all that there is.
        later = query.shape[1] * self.num_heads < value.shape[1]
        rows = (value if later else self.value_proj(value)).unflatten(2, (1 if later else self.num_heads, -1))
        rows = rows.transpose(1, 2).contiguous()
        pieces = (t.split(PIECE, 1) for t in (query, query_pos, reference_points))
        return torch.cat([self._look(rows, *piece, spatial_shapes, level_start_index) for piece in zip(*pieces)], 1)

    def _look(self, rows, query, query_pos, reference_points, shapes, starts):
        asking = query + query_pos
        sizes = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(asking).unflatten(2, (*sizes, 2))
        weights = self.attention_weights(asking).unflatten(2, (self.num_heads, -1)).softmax(-1).unflatten(3, sizes[1:])
        centres, extent = reference_points[..., :2], reference_points[..., 2:]
        if extent.shape[-1]:
            # A box: in halves of its size, shared out among the points.
            unit = extent * shapes.flip(1) / (2 * self.num_points)
            offsets = offsets * unit[:, :, None, :, None]
        seen, inside = deformable_attention(rows, shapes, starts, centres, offsets, weights)
        if rows.shape[1] < self.num_heads:
            weight, bias = (t.unflatten(0, (self.num_heads, -1))
                            for t in (self.value_proj.weight, self.value_proj.bias))
            # Beyond the maps there are zeros, without a bias.
            seen = torch.einsum('bqhc,hdc->bqhd', seen, weight) + inside * bias
        return query + self.dropout(self.output_proj(seen.flatten(2)))
