"""Two layers of mmcv that are slow over tens of thousands of places on a CPU: same weights, same outputs."""
import torch
from mmcv.cnn.bricks.transformer import FFN
from mmcv.ops import MultiScaleDeformableAttention

from mmtr.ops.deformable import deformable_attention

#: So many places at a time: mmcv's hidden layer of all is fetched from the system, page by page, at each call.
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
        if query.device.type != 'cpu':
            return super().forward(query, **kwargs)
        return query + self.dropout(self.output_proj(self._look(query, **kwargs)))

    def _look(self, query, value, query_pos, reference_points, spatial_shapes, level_start_index, **_):
        query = query + query_pos
        value = self.value_proj(value).unflatten(2, (self.num_heads, -1))
        sizes = self.num_heads, self.num_levels, self.num_points
        offsets = self.sampling_offsets(query).unflatten(2, (*sizes, 2))
        weights = self.attention_weights(query).unflatten(2, (self.num_heads, -1)).softmax(-1).unflatten(3, sizes[1:])
        centres, extent = reference_points[..., :2], reference_points[..., 2:]
        if extent.shape[-1]:
            # A box: in halves of its size, shared out among the points.
            unit = extent * spatial_shapes.flip(1) / (2 * self.num_points)
            offsets = offsets * unit[:, :, None, :, None]
        return deformable_attention(value, spatial_shapes, level_start_index, centres, offsets, weights)
