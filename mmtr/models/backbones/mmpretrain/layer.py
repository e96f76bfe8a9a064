"""The layers of mmpretrain's ViTs on ``Tokens``: attention, FFN, SwiGLU."""

from dataclasses import dataclass
from typing import Callable, Optional

import torch.nn.functional as F
from mmpretrain.models.backbones import deit3, vision_transformer
from mmpretrain.models.utils import MultiheadAttention as StockAttention
from mmpretrain.models.utils import SwiGLUFFN, SwiGLUFFNFused
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.attention import TokenAttention
from mmtr.models.backbones.common.layer import FFN, ReducibleLayer
from mmtr.models.backbones.common.twins import share
from mmtr.tokens import Tokens


class MultiheadAttention(StockAttention):
    """mmpretrain's, whose linear layer ``qkv`` keeps its name: ``at`` has the methods of ``TokenAttention``."""

    backend: str

    def forward(self, x: Tensor, branch: Optional[Callable[[Tensor], Tensor]] = None) -> Tensor:
        """Attend, without residual, as stock; or by ``branch``, if given."""
        return super().forward(x) if branch is None else self.out_drop(branch(x))

    def at(self, tokens: Tokens) -> TokenAttention:
        """Bind the attention to ``tokens``, for a reducer."""
        return AttentionOf(self)


@dataclass
class AttentionOf(TokenAttention):
    """The contract of attention, kept by a ``MultiheadAttention``."""

    module: MultiheadAttention

    @property
    def backend(self) -> str:
        """See ``TokenAttention``."""
        return self.module.backend

    @property
    def attention_dropout(self) -> float:
        """See ``TokenAttention``."""
        return self.module.attn_drop if self.module.training else 0.0

    def qkv(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor, Tensor]:
        """See ``TokenAttention``."""
        return self.module.qkv(x).unflatten(-1, (3, self.module.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def project(self, x: Tensor) -> Tensor:
        """See ``TokenAttention``."""
        return self.module.gamma1(self.module.proj_drop(self.module.proj(x)))


class Gated:
    """Mixin for mmpretrain's SwiGLU, of which a reducer may compute the branch."""

    def forward(
        self, x: Tensor, identity: Optional[Tensor] = None, branch: Optional[Callable[[Tensor], Tensor]] = None
    ) -> Tensor:
        """Compute the FFN as stock; or its layers by ``branch``, if given."""
        if branch is None:
            return super().forward(x, identity)
        out = self.dropout_layer(branch(x))
        return identity + out if self.add_identity else out

    def branch(self, x: Tensor) -> Tensor:
        """Compute the layers without residual: (..., C) -> (..., C)."""
        gate, value = self.w12(x).chunk(2, -1)
        return self.gamma2(self.w3(self.norm(F.silu(gate) * value)))


class SwiGLU(Gated, SwiGLUFFN):
    """mmpretrain's ``SwiGLUFFN``; made by ``reducible``."""


class SwiGLUFused(Gated, SwiGLUFFNFused):
    """mmpretrain's ``SwiGLUFFNFused``; made by ``reducible``."""


class EncoderLayer(ReducibleLayer):
    """Mixin for the layers of mmpretrain's ViTs."""

    with_cp = False

    def linears(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """See ``ReducibleLayer``."""
        if isinstance(self.ffn, Gated):
            fc1, fc2 = self.ffn.w12, self.ffn.w3
        else:
            (fc1, *_), fc2, *_ = self.ffn.layers
        found = dict(qkv=self.attn.qkv, proj=self.attn.proj, fc1=fc1, fc2=fc2)
        return {name: (linear, linear.weight) for name, linear in found.items()}

    def _attend(self, x, tokens, branch: Callable):
        return tokens.x + self.attn(x, branch=branch)


class TransformerEncoderLayer(EncoderLayer, vision_transformer.TransformerEncoderLayer):
    """The layer of mmpretrain's ViT; made by ``reducible``."""


class DeiT3TransformerEncoderLayer(EncoderLayer, deit3.DeiT3TransformerEncoderLayer):
    """The layer of mmpretrain's DeiT3; made by ``reducible``."""

    @property
    def norm1(self) -> nn.Module:
        """Before attention."""
        return self.ln1

    @property
    def norm2(self) -> nn.Module:
        """Before the FFN; as in mmpretrain the first norm again, and ``ln2`` is never used."""
        return self.ln1


def check_scale(attn: nn.Module) -> None:
    """Raise a ``UserError`` unless logits of an attention are divided by the root of the channels of a head."""
    usual = (attn.embed_dims // attn.num_heads) ** -0.5
    if attn.scale != usual:
        raise UserError(f'qk_scale={attn.scale} must be {usual:.6g}, by which fused attention scales: leave it out.')


_TWINS = {
    vision_transformer.TransformerEncoderLayer: TransformerEncoderLayer,
    deit3.DeiT3TransformerEncoderLayer: DeiT3TransformerEncoderLayer,
}


def reducible(layer: nn.Module, attn_backend: str) -> nn.Module:
    """Return the twin of a stock layer, which runs on ``Tokens``."""
    twin = share(_TWINS[type(layer)], layer)
    twin.attn = share(MultiheadAttention, layer.attn)
    twin.attn.backend = attn_backend
    twin.ffn = share(SwiGLUFused if isinstance(layer.ffn, SwiGLUFFNFused) else FFN, layer.ffn)
    return twin
