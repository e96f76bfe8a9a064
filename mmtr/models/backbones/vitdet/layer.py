"""The layer of ViTDet: attention with decomposed relative positions, within windows or global, and an FFN."""

from typing import Callable, Optional

import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.nn import functional as F

from mmtr.models.backbones.common.attention import Group, TokenAttention
from mmtr.models.backbones.common.layer import ReducibleLayer
from mmtr.models.backbones.common.windowed_vit import WindowedViTAttention
from mmtr.ops.decomposed_positions import with_positions
from mmtr.ops.resize import resize_differences
from mmtr.ops.windows import padding_of_windows, to_windows
from mmtr.tokens import Tokens


class DecomposedAttention(BaseModule):
    """Self-attention with decomposed relative positions.

    Args:
        embed_dims: Number of channels, C.
        num_heads: Number of attention heads.
        grid: (H, W) of the grid that the tables of relative positions are for: the whole grid, or that of a window.
        drop_path: Drop path probability.
        window: Side, in patches, of the windows within which tokens attend as long as no token is reduced; None:
            global attention.
        backend: Attention backend, see ``mmtr.ops.attention``.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        grid: tuple[int, int],
        drop_path: float = 0.0,
        window: Optional[int] = None,
        backend: str = 'auto',
    ):
        super().__init__()
        self.num_heads, self.window, self.backend = num_heads, window, backend
        self.qkv = nn.Linear(embed_dims, 3 * embed_dims)
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.rel_pos_h, self.rel_pos_w = (nn.Parameter(torch.zeros(2 * n - 1, embed_dims // num_heads)) for n in grid)
        self.branch_dropout = DropPath(drop_path)

    def forward(self, x: Tensor, identity: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add ``branch(x)``, the attention branch with drop path, to ``identity``: (B, N, C) -> (B, N, C)."""
        return identity + self.branch_dropout(branch(x))

    def at(self, tokens: Tokens) -> TokenAttention:
        """Bind the attention to ``tokens``, whose positions it needs."""
        return DecomposedAttentionAt(self, tokens)


class DecomposedAttentionAt(WindowedViTAttention):
    """``DecomposedAttention`` bound to tokens, by whose positions the logits differ; there are no prefix tokens.

    A layer that attends to the whole grid resizes its tables linearly to it, as stock. So does a layer that is no
    longer windowed, whose tables are of a window.
    """

    #: The logit of a query and a key differs by the positions of both.
    merges_apart = False

    def qkv(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens to queries, keys and values, see ``TokenAttention``."""
        return self.module.qkv(x).unflatten(-1, (3, self.module.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def positioned(
        self, q: Tensor, k: Tensor, kept: Optional[Tensor] = None
    ) -> tuple[Tensor, Tensor, Optional[Tensor]]:
        """Add relative positions of the whole grid to queries and keys, see ``TokenAttention``."""
        index = self.tokens.index
        if kept is not None:
            index = kept if index is None else index.gather(1, kept)
        return *self._with_positions(q, k, self.tokens.grid, index), None

    def cut(self, q: Tensor, k: Tensor, v: Tensor) -> Group:
        """Cut queries, keys and values into windows; tokens attend to their padding, as stock: zeros after the norm."""
        grid, window = self.tokens.grid, self.module.window
        batch, padding = q.shape[0], padding_of_windows(grid, window, q.device)
        q, k, v = (to_windows(t, grid, window) for t in (q, k, v))
        if padding is not None and self.module.qkv.bias is not None:
            padding = padding[:, None, :, None].repeat(batch, 1, 1, 1)
            of_zeros = self.module.qkv.bias.to(k.dtype).unflatten(0, (3, self.module.num_heads, 1, -1))
            k, v = (torch.where(padding, bias, t) for bias, t in zip(of_zeros[1:], (k, v)))
        return *self._with_positions(q, k, (window, window)), v, None

    def project(self, x: Tensor) -> Tensor:
        """Apply the output projection, see ``TokenAttention``."""
        return self.module.proj(x)

    def _with_positions(self, q, k, grid, index=None):
        tables = (self.module.rel_pos_h, self.module.rel_pos_w)
        if tables[0] is None:  # SAM's without relative positions
            return q, k
        return with_positions(q, k, tuple(map(resize_differences, tables, grid)), grid, index)


class FFN(BaseModule):
    """Two linear layers with GELU.

    Args:
        embed_dims: Number of channels, C.
        hidden: Number of channels between them.
        drop_path: Drop path probability.
    """

    def __init__(self, embed_dims: int, hidden: int, drop_path: float = 0.0):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(embed_dims, hidden), nn.Linear(hidden, embed_dims)
        self.dropout_layer = DropPath(drop_path)

    def forward(self, x: Tensor, identity: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add ``branch(x)``, the FFN branch with drop path, to ``identity``: (B, N, C) -> (B, N, C)."""
        return identity + self.dropout_layer(branch(x))

    def branch(self, x: Tensor) -> Tensor:
        """Run the FFN without residual and drop path: (..., C) -> (..., C)."""
        return self.fc2(F.gelu(self.fc1(x)))


class ViTDetLayer(ReducibleLayer, BaseModule):
    """A transformer layer of ViTDet, which runs on ``Tokens``.

    Args:
        embed_dims: Number of channels, C.
        num_heads: Number of attention heads.
        hidden: Number of channels inside the FFN.
        norm_cfg: Config of both norms.
        grid: (H, W) of the whole grid.
        drop_path: Drop path probability of each branch.
        window, backend: See ``DecomposedAttention``.
        with_cp: Whether activation checkpointing recomputes the layer in the backward pass.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        hidden: int,
        norm_cfg: dict,
        grid: tuple[int, int],
        drop_path: float,
        window: Optional[int],
        backend: str,
        with_cp: bool,
    ):
        super().__init__()
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        seen = grid if window is None else (window, window)
        self.attn = DecomposedAttention(embed_dims, num_heads, seen, drop_path, window, backend)
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.ffn = FFN(embed_dims, hidden, drop_path)
        self.with_cp = with_cp

    def linears(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return the linear layers by name, see ``ReducibleLayer``."""
        found = dict(qkv=self.attn.qkv, proj=self.attn.proj, fc1=self.ffn.fc1, fc2=self.ffn.fc2)
        return {name: (linear, linear.weight) for name, linear in found.items()}
