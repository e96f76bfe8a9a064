"""Attention with spatial reduction, FFNs with convolutions, and the layers that have them, on ``Tokens``."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Callable, Optional, Union

from mmseg.models.backbones import mit
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.attention import TokenAttention
from mmtr.models.backbones.common.layer import Projection, ReducibleLayer
from mmtr.models.backbones.common.twins import share
from mmtr.peft import PEFT
from mmtr.reducers.base import TokenReducer
from mmtr.tokens import Tokens


def on_grid(layer: nn.Module, x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Run a convolution on tokens that form a grid: (B, H * W, C) -> (B, H' * W', C')."""
    # Channels come last in memory, before and after: neither side is copied.
    return layer(x.unflatten(1, grid).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


class SpatialReductionAttention(mit.EfficientMultiheadAttention):
    """The attention of SegFormer, PVT and Twins; made by ``pyramid_attention``."""

    backend: str

    def forward(
        self,
        x: Tensor,
        hw_shape: tuple[int, int],
        identity: Union[Tensor, float, None] = None,
        branch: Optional[Callable[[Tensor], Tensor]] = None,
    ) -> Tensor:
        """Run attention with residual and dropout, as stock; ``branch`` computes it if given: (B, N, C)."""
        if branch is None:
            return super().forward(x, hw_shape, identity)
        return identity + self.dropout_layer(self.proj_drop(branch(x)))

    def at(self, tokens: Tokens) -> TokenAttention:
        """Bind the attention to ``tokens``, whose grid it needs."""
        return SpatialReductionAt(self, tokens.form)


@dataclass
class SpatialReductionAt(TokenAttention):
    """``SpatialReductionAttention`` bound to a grid of tokens; keys and values are those of a coarser grid.

    Args:
        module: Module with the weights.
        grid: (H', W') that the tokens form.
    """

    module: SpatialReductionAttention
    grid: tuple[int, int]

    @property
    def backend(self) -> str:
        """The attention backend, see ``TokenAttention``."""
        return self.module.backend

    @property
    def attention_dropout(self) -> float:
        """The current probability to drop an attention weight, see ``TokenAttention``."""
        return self.module.attn.dropout if self.module.training else 0.0

    def qkv(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens to queries, and their coarser grid to keys and values; ``kept`` must be None."""
        if kept is not None:
            raise UserError('Spatial reduction needs every token of the grid: reduce before or after a layer.')
        if self.module.sr_ratio <= 1:
            return self._projected(x, 0, 3)
        return self.queries(x), *self.keys_values(self.sources(x, self.grid)[0])

    def sources(self, x: Tensor, grid: tuple[int, int]) -> tuple[Tensor, tuple[int, int]]:
        """Compute the tokens of keys and values, whose grid is coarser, see ``TokenAttention``."""
        module = self.module
        if module.sr_ratio <= 1:
            return x, grid
        return module.norm(on_grid(module.sr, x, grid)), tuple(n // int(module.sr_ratio) for n in grid)

    def queries(self, x: Tensor, kept: Optional[Tensor] = None) -> Tensor:
        """Project tokens to queries alone, see ``TokenAttention``."""
        return self._projected(x, 0, 1)[0]

    def keys_values(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor]:
        """Project tokens of the coarser grid to keys and values, see ``TokenAttention``."""
        return self._projected(x, 1, 3)

    def project(self, x: Tensor) -> Tensor:
        """Apply the output projection, see ``TokenAttention``."""
        return self.module.attn.out_proj(x)

    def _projected(self, x, first, last):
        """Project by the parts ``first`` to ``last`` - 1 of queries, keys and values, one tensor each."""
        attn, width = self.module.attn, self.module.embed_dims
        rows = slice(first * width, last * width)
        out = self.module.in_projection(x, attn.in_proj_weight, attn.in_proj_bias, rows)
        return out.unflatten(-1, (last - first, attn.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def pyramid_attention(stock: nn.Module, attn_backend: str) -> SpatialReductionAttention:
    """Return the twin of an attention of mmseg or mmdet, whose classes are alike."""
    twin = share(SpatialReductionAttention, stock)
    twin.backend, twin.in_projection = attn_backend, Projection()
    return twin


class MixFFN(mit.MixFFN):
    """The FFN of SegFormer and PVT, with 1x1 convolutions that run as linear layers; made by ``mix_ffn``."""

    def forward(
        self,
        x: Tensor,
        hw_shape: Optional[tuple[int, int]] = None,
        identity: Optional[Tensor] = None,
        branch: Optional[Callable[[Tensor], Tensor]] = None,
    ) -> Tensor:
        """Run the FFN with residual and drop path, as stock; ``branch`` computes the layers if given: (B, N, C)."""
        return super().forward(x, hw_shape, identity) if branch is None else identity + self.dropout_layer(branch(x))

    def branch(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        """Run the layers without residual and drop path, on tokens that form ``grid``: (B, N, C) -> (B, N, C)."""
        projections = iter(self.projections)
        for layer in self.layers:
            if not isinstance(layer, nn.Conv2d):
                x = layer(x)
            elif layer.kernel_size == (1, 1):
                x = next(projections)(x, layer.weight.flatten(1), layer.bias)
            else:
                x = on_grid(layer, x, grid)
        return x

    @property
    def linears(self) -> list[nn.Conv2d]:
        """The two 1x1 convolutions."""
        return [layer for layer in self.layers if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)]


def mix_ffn(stock: nn.Module) -> MixFFN:
    """Return the twin of an FFN of mmseg or mmdet, whose classes are alike."""
    twin = share(MixFFN, stock)
    twin.projections = nn.ModuleList([Projection(), Projection()])
    return twin


class PyramidLayer(ReducibleLayer):
    """Mixin for a layer whose attention needs the grid that tokens form; ``ReducibleLayer`` has the rest."""

    with_cp = False

    def linears(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return the linear layers by name, see ``ReducibleLayer``."""
        attn, (fc1, fc2) = self.attn, self._linears_of_ffn()
        return dict(
            qkv=(attn.in_projection, attn.attn.in_proj_weight),
            proj=(attn.attn.out_proj, attn.attn.out_proj.weight),
            fc1=fc1,
            fc2=fc2,
        )

    def _linears_of_ffn(self) -> Sequence[tuple[nn.Module, Tensor]]:
        return [(module, conv.weight) for module, conv in zip(self.ffn.projections, self.ffn.linears)]

    def _inner_forward(self, tokens: Tokens, reducer: TokenReducer, i: int, peft: Optional[PEFT], first: int):
        form = reducer.grid_schedule(tokens.grid, i + 1)[i]
        return super()._inner_forward(self._formed(tokens, form), reducer, i, peft, first)

    def _formed(self, tokens, form):
        """Tell ``tokens`` the grid (H', W') that they form in this layer."""
        return tokens.replace(form=form)

    def _attend(self, x, tokens, branch):
        return self.attn(x, tokens.form, identity=tokens.x, branch=branch)

    def _ffn_branch(self, tokens):
        return lambda x: self.ffn.branch(x, tokens.form)
