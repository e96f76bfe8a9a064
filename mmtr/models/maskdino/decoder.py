"""MaskDINO's transformer decoder: DINO's, with references of any number of channels."""

from typing import Callable, Optional

from mmdet.models.layers import DinoTransformerDecoder, coordinate_to_encoding, inverse_sigmoid
from torch import Tensor

from .layers import DeformableAttention
from .pixel_decoder import deformable_layer, reset_transformer


def refine(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (..., 4) as centre and size in 0 ... 1, moved by ``deltas`` in the space before the sigmoid."""
    return (inverse_sigmoid(boxes) + deltas).sigmoid()


class MaskDINODecoder(DinoTransformerDecoder):
    """Queries look at each other and at the encoded maps around their boxes, layer by layer (DINO)."""

    def __init__(
        self,
        channels: int,
        num_levels: int,
        num_layers: int = 9,
        num_heads: int = 8,
        num_points: int = 4,
        feedforward_channels: int = 2048,
    ):
        attn, deformable, ffn = deformable_layer(channels, feedforward_channels, num_levels, num_heads, num_points)
        super().__init__(
            num_layers,
            dict(self_attn_cfg=attn, cross_attn_cfg=deformable, ffn_cfg=ffn),
            return_intermediate=True,
            post_norm_cfg=None,
        )
        for layer in self.layers:
            layer.cross_attn = DeformableAttention(**deformable)

    def init_weights(self) -> None:
        """As the release."""
        reset_transformer(self)

    def forward(
        self,
        query: Tensor,
        boxes: Tensor,
        memory: Tensor,
        shapes: Tensor,
        starts: Tensor,
        attn_mask: Optional[Tensor],
        bbox_embed: Callable[[Tensor], Tensor],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Every layer's queries, normed, and what box each starts from.

        Positions are conditional: they come from the boxes, which each layer refines for the next. A gradient
        reaches a box from its own layer and the one after it ("look forward twice" in DINO).

        Args:
            query: (B, Q, C).
            boxes: (B, Q, 4), centre and size in 0 ... 1.
            memory: Encoded maps in a row (B, N, C), with their ``shapes`` (L, 2) and ``starts`` (L, ).
            attn_mask: (Q, Q), True where a query must not look; or None.
            bbox_embed: Queries -> changes of their boxes.

        Returns:
            Two lists of one tensor a layer: queries (B, Q, C), and boxes (B, Q, 4) before the layer.
        """
        states, references = [], []
        for layer in self.layers:
            references.append(boxes)
            boxes = boxes if not states else boxes.detach()
            query = layer(
                query,
                query_pos=self.ref_point_head(coordinate_to_encoding(boxes, self.embed_dims // 2)),
                value=memory,
                self_attn_mask=attn_mask,
                reference_points=boxes.unsqueeze(2).expand(-1, -1, len(shapes), -1),
                spatial_shapes=shapes,
                level_start_index=starts,
            )
            boxes = refine(boxes, bbox_embed(query))
            states.append(self.norm(query))
        return states, references
