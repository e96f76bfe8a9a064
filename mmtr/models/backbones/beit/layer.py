"""The layers of BEiT and MAE, on ``Tokens``: attention with a bias of relative positions, and scaled branches."""

from dataclasses import dataclass
from typing import Callable, Optional

import torch
from mmseg.models.backbones import beit, mae
from torch import Tensor, nn

from mmtr.models.backbones.common.attention import Group, TokenAttention
from mmtr.models.backbones.common.layer import FFN, Projection, ReducibleLayer
from mmtr.models.backbones.common.twins import share
from mmtr.ops.relative_bias import relative_bias, relative_index
from mmtr.ops.resize import resize_offsets
from mmtr.tokens import Tokens


class BiasedAttention:
    """Mixin for BEiT's attention, whose linear layer ``qkv`` keeps its name: ``at`` has the methods that reducers use.

    A twin has ``backend`` and ``in_projection``; the latter runs ``qkv`` where only queries and values have a bias.
    """

    backend: str
    #: The module of the backbone with a table that all layers share; None: each layer has its own, or there is none.
    shared: Optional[nn.Module] = None

    @property
    def offsets(self) -> nn.Module:
        """The module with the table of relative positions, which is None without a bias."""
        return self if self.shared is None else self.shared

    def forward(self, x: Tensor, *args, branch: Optional[Callable[[Tensor], Tensor]] = None, **kwargs) -> Tensor:
        """Attend, without residual, as stock; or by ``branch``, if given: (B, N, C)."""
        return super().forward(x, *args, **kwargs) if branch is None else self.proj_drop(branch(x))

    def at(self, tokens: Tokens) -> TokenAttention:
        """Bind the attention to ``tokens``, whose positions it needs."""
        return BiasedAttentionAt(self, tokens)

    @property
    def projection(self) -> nn.Module:
        """The module that projects tokens to queries, keys and values."""
        return self.in_projection if self.bias == 'qv_bias' else self.qkv

    def project_in(self, x: Tensor) -> Tensor:
        """Project tokens to queries, keys and values: (B, N, C) -> (B, N, 3 C)."""
        if self.bias != 'qv_bias':
            return self.qkv(x)
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        return self.in_projection(x, self.qkv.weight, bias)


@dataclass
class BiasedAttentionAt(TokenAttention):
    """``BiasedAttention`` bound to tokens, whose positions decide on the bias.

    Args:
        module: Module with the weights.
        tokens: Tokens of the layer.
    """

    module: BiasedAttention
    tokens: Tokens

    @property
    def merges_apart(self) -> bool:
        """Whether queries may be of other tokens than keys: not with a bias."""
        return self.module.offsets.relative_position_bias_table is None

    @property
    def backend(self) -> str:
        """The attention backend, see ``TokenAttention``."""
        return self.module.backend

    @property
    def attention_dropout(self) -> float:
        """The current probability to drop an attention weight, see ``TokenAttention``."""
        return self.module.attn_drop.p if self.module.training else 0.0

    def qkv(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens to queries, keys and values, see ``TokenAttention``."""
        return self.module.project_in(x).unflatten(-1, (3, self.module.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def positioned(
        self, q: Tensor, k: Tensor, kept: Optional[Tensor] = None
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        """Return queries, keys and the bias of relative positions, see ``TokenAttention``."""
        offsets, grid = self.module.offsets, self.tokens.grid
        if offsets.relative_position_bias_table is None:
            return q, k, None
        table = resize_offsets(offsets.relative_position_bias_table, tuple(offsets.window_size), grid)
        return q, k, relative_bias(table.to(q.dtype), self._index(q.shape[2], kept))

    def split(self, q: Tensor, k: Tensor, v: Tensor, bias: Optional[Tensor], kept: Optional[Tensor]) -> list[Group]:
        """Add the bias of relative positions to the caller's; all tokens are one group."""
        own = self.positioned(q, k, kept)[2]
        return [(q, k, v, bias if own is None else own if bias is None else own + bias)]

    def project(self, x: Tensor) -> Tensor:
        """Apply the output projection, see ``TokenAttention``."""
        return self.module.proj(x)

    def _index(self, count, kept):
        """Return the row of the table for the first ``count`` queries and all keys: (B or 1, ``count``, P + M)."""
        offsets, tokens = self.module.offsets, self.tokens
        if kept is None and tokens.index is None and tokens.grid == tuple(offsets.window_size):
            return offsets.relative_position_index[:count].unsqueeze(0)
        positions = tokens.positions if kept is None else tokens.positions.gather(1, kept)
        if positions.stride(0) == 0:  # the same in all images
            positions = positions[:1]
        nowhere = positions.new_full((positions.shape[0], tokens.num_prefix), tokens.grid[0] * tokens.grid[1])
        positions = torch.cat([nowhere, positions], 1)
        return relative_index(positions[:, :count], positions, tokens.grid)


class BiasedLayer(ReducibleLayer):
    """Mixin for BEiT's layer, which scales the branches of attention and FFN by ``gamma_1`` and ``gamma_2``, if any."""

    def linears(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return the linear layers by name, see ``ReducibleLayer``."""
        attn, ((fc1, *_), fc2, *_) = self.attn, self.ffn.layers
        return dict(
            qkv=(attn.projection, attn.qkv.weight),
            proj=(attn.proj, attn.proj.weight),
            fc1=(fc1, fc1.weight),
            fc2=(fc2, fc2.weight),
        )

    def _attend(self, x, tokens, branch):
        return tokens.x + self.drop_path(_scaled(self.attn(x, branch=branch), self.gamma_1))

    def _feed(self, x, tokens, branch):
        return tokens.x + self.drop_path(_scaled(self.ffn(x, identity=x, branch=branch), self.gamma_2))


def _scaled(x, gamma):
    return x if gamma is None else gamma * x


class BEiTAttention(BiasedAttention, beit.BEiTAttention):
    """mmseg's ``BEiTAttention`` with a fused backend; made by ``reducible``."""


class BEiTTransformerEncoderLayer(BiasedLayer, beit.BEiTTransformerEncoderLayer):
    """mmseg's BEiT layer on ``Tokens``; made by ``reducible``."""


class MAEAttention(BiasedAttention, mae.MAEAttention):
    """mmseg's ``MAEAttention``, whose table is initialised to zeros, with a fused backend; made by ``reducible``."""


class MAETransformerEncoderLayer(BiasedLayer, mae.MAETransformerEncoderLayer):
    """mmseg's MAE layer on ``Tokens``; made by ``reducible``."""


_TWINS = {
    beit.BEiTTransformerEncoderLayer: (BEiTTransformerEncoderLayer, BEiTAttention),
    mae.MAETransformerEncoderLayer: (MAETransformerEncoderLayer, MAEAttention),
}


def reducible(layer: nn.Module, attn_backend: str) -> nn.Module:
    """Return the twin of a stock layer of BEiT or MAE, which runs on ``Tokens``."""
    own, attention = _TWINS[type(layer)]
    twin = share(own, layer)
    twin.attn, twin.ffn = share(attention, layer.attn), share(FFN, layer.ffn)
    twin.attn.backend, twin.attn.in_projection = attn_backend, Projection()
    return twin
