"""MaskDINO's transformer decoder: that of DINO, for any number of channels."""

from typing import Callable, Optional

from mmdet.models.layers import DinoTransformerDecoder, coordinate_to_encoding, inverse_sigmoid
from torch import Tensor

from .layers import DeformableAttention
from .pixel_decoder import deformable_layer, reset_transformer


def refine(boxes: Tensor, deltas: Tensor) -> Tensor:
    """Refine boxes (..., 4), centre and size in 0 ... 1, by adding ``deltas`` to their inverse sigmoid."""
    return (inverse_sigmoid(boxes) + deltas).sigmoid()


class MaskDINODecoder(DinoTransformerDecoder):
    """DINO's decoder: layers of self-attention among queries and deformable attention to the encoded maps.

    Args:
        channels: Number of channels of queries and maps, C.
        num_levels: Number of encoded maps.
        num_layers: Number of layers.
        num_heads: Number of attention heads.
        num_points: Number of sampling points for each head and level.
        feedforward_channels: Number of channels of the FFN's hidden layer.
    """

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
        """Initialise as the released code."""
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
        """Run the layers; return the normalised queries and the input boxes of each.

        Position embeddings are computed from the boxes, which each layer refines for the next. A box gets gradients
        from its own layer and from the next one ("look forward twice" in DINO).

        Args:
            query: (B, Q, C) queries.
            boxes: (B, Q, 4) boxes, centre and size in 0 ... 1.
            memory: (B, N, C) encoded maps, flattened one after the other.
            shapes: (L, 2) height and width of each map.
            starts: (L, ) index in ``memory`` of the first place of each map.
            attn_mask: (Q, Q) True where self-attention is masked; None: nowhere.
            bbox_embed: Box head: queries (B, Q, C) -> changes of their boxes (B, Q, 4), for ``refine``.

        Returns:
            Two lists with one tensor for each layer: queries (B, Q, C) after it, and boxes (B, Q, 4) before it.
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
