"""The layer of EVA-02 and DINOv3: attention with rotary position embedding, and an FFN, gated or not."""

from typing import Callable, Optional

import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks import DropPath
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmtr.models.backbones.common.attention import Group, TokenAttention
from mmtr.models.backbones.common.feed_forward import FeedForward, SwiGLU, scale_of
from mmtr.models.backbones.common.layer import Projection, ReducibleLayer
from mmtr.models.backbones.common.windowed_vit import WindowedViTAttention
from mmtr.ops.rotary import rotate
from mmtr.ops.windows import padding_of_windows, to_windows
from mmtr.tokens import Tokens


class RotaryAttention(BaseModule):
    """Self-attention with rotary position embedding of queries and keys; keys have no bias.

    Args:
        embed_dims: Number of channels, C.
        num_heads: Number of attention heads.
        norm_cfg: Config of the norm before the output projection; None: no norm.
        drop_path: Drop path probability.
        window: Side, in patches, of the windows within which tokens attend as long as no token is reduced; None:
            global attention.
        backend: Attention backend, see ``mmtr.ops.attention``.
        layer_scale: Initial value of LayerScale after the output projection; None: there is none.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        norm_cfg: Optional[dict] = None,
        drop_path: float = 0.0,
        window: Optional[int] = None,
        backend: str = 'auto',
        layer_scale: Optional[float] = None,
    ):
        super().__init__()
        self.num_heads, self.window, self.backend = num_heads, window, backend
        self.in_proj = nn.Linear(embed_dims, 3 * embed_dims, bias=False)
        self.in_projection = Projection()
        self.q_bias = nn.Parameter(torch.zeros(embed_dims))
        self.v_bias = nn.Parameter(torch.zeros(embed_dims))
        self.norm = nn.Identity() if norm_cfg is None else build_norm_layer(norm_cfg, embed_dims)[1]
        self.proj = nn.Linear(embed_dims, embed_dims)
        self.gamma1 = scale_of(embed_dims, layer_scale)
        self.branch_dropout = DropPath(drop_path)

    def forward(self, x: Tensor, identity: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """Add ``branch(x)``, the attention branch with drop path, to ``identity``: (B, N, C) -> (B, N, C)."""
        return identity + self.branch_dropout(branch(x))

    def at(self, tokens: Tokens) -> TokenAttention:
        """Bind the attention to ``tokens``, whose positions it needs."""
        return RotaryAttentionAt(self, tokens)


class RotaryAttentionAt(WindowedViTAttention):
    """``RotaryAttention`` bound to tokens, by whose positions queries and keys are rotated."""

    @property
    def merges_apart(self) -> bool:
        """Whether queries may be of other tokens than keys: not within windows."""
        return self.module.window is None or self.tokens.index is not None

    def qkv(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens to queries, keys and values, see ``TokenAttention``."""
        qkv = self.project_in(x).unflatten(-1, (3, self.module.num_heads, -1)).permute(2, 0, 3, 1, 4)
        turned = rotate(self.paired(qkv[:2]), *self._turns(x.shape[1], kept))
        return turned[0], turned[1], qkv[2]

    def project_in(self, x: Tensor) -> Tensor:
        """Project tokens to queries, keys and values: (B, N, C) -> (B, N, 3 C)."""
        module = self.module
        bias = torch.cat([module.q_bias, torch.zeros_like(module.q_bias), module.v_bias])
        return module.in_projection(x, module.in_proj.weight, bias)

    def paired(self, x: Tensor) -> Tensor:
        """Order the channels of queries and keys as ``rotate`` pairs them: (..., D) -> (..., D)."""
        return x

    def cut(self, q: Tensor, k: Tensor, v: Tensor) -> Group:
        """Cut queries, keys and values into windows; no token attends to their padding."""
        grid, window = self.tokens.grid, self.module.window
        batch, hidden = q.shape[0], padding_of_windows(grid, window, q.device)
        q, k, v = (to_windows(t, grid, window) for t in (q, k, v))
        if hidden is None:
            return q, k, v, None
        bias = q.new_zeros(hidden.shape).masked_fill(hidden, -torch.inf)
        return q, k, v, bias[:, None, None].repeat(batch, 1, 1, 1)

    def project(self, x: Tensor) -> Tensor:
        """Apply the output projection, with its norm and LayerScale, see ``TokenAttention``."""
        return self.module.gamma1(self.module.proj(self.module.norm(x)))

    def _turns(self, count, kept):
        """Return the cosines and sines of prefix and patch tokens, each (B or 1, 1, ``count``, D / 2 or D)."""
        tokens = self.tokens
        table = tokens.rotary[self.windowed(count)]
        index = kept if tokens.index is None else tokens.index
        if kept is not None and tokens.index is not None:
            index = tokens.index.gather(1, kept)
        turns = table[:, None, :-1] if index is None else table[:, index]
        prefix = table[:, None, -1:].expand(-1, turns.shape[1], tokens.num_prefix, -1)
        return torch.cat([prefix, turns], 2).unsqueeze(2).unbind(0)


class RotaryEncoderLayer(ReducibleLayer, BaseModule):
    """A transformer layer of EVA-02 or DINOv3, which runs on ``Tokens``.

    Args:
        embed_dims: Number of channels.
        num_heads: Number of attention heads.
        hidden: Number of hidden channels of the FFN.
        norm_cfg: Config of every norm.
        ffn: Class of the FFN.
        ffn_norm, attn_norm: Whether FFN and attention have an inner norm.
        drop_path: Drop path probability of each branch.
        window, backend: See ``RotaryAttention``.
        layer_scale: Initial value of LayerScale at the end of each branch; None: there is none.
        with_cp: Whether activation checkpointing recomputes the layer in the backward pass.
    """

    def __init__(
        self,
        embed_dims: int,
        num_heads: int,
        hidden: int,
        norm_cfg: dict,
        ffn: type[FeedForward] = SwiGLU,
        ffn_norm: bool = False,
        attn_norm: bool = False,
        drop_path: float = 0.0,
        window: Optional[int] = None,
        backend: str = 'auto',
        layer_scale: Optional[float] = None,
        with_cp: bool = False,
    ):
        super().__init__()
        inner = [norm_cfg if normed else None for normed in (attn_norm, ffn_norm)]
        self.norm1 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.attn = RotaryAttention(embed_dims, num_heads, inner[0], drop_path, window, backend, layer_scale)
        self.norm2 = build_norm_layer(norm_cfg, embed_dims)[1]
        self.ffn = ffn(embed_dims, hidden, inner[1], drop_path, layer_scale)
        self.with_cp = with_cp

    def linears(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return the linear layers by name, see ``ReducibleLayer``."""
        attn, ffn = self.attn, self.ffn
        return dict(
            qkv=(attn.in_projection, attn.in_proj.weight),
            proj=(attn.proj, attn.proj.weight),
            fc1=(ffn.fc1, ffn.fc1.weight),
            fc2=(ffn.fc2, ffn.fc2.weight),
        )
