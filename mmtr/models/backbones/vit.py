"""mmseg's VisionTransformer with fused attention, token reduction and PEFT: attention, layer and backbone."""

from typing import Callable, Optional

import mmcv.cnn.bricks.transformer as mmcv_transformer
from mmengine.model import ModuleList
from mmseg.models.backbones import vit
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.registry import MODELS
from mmtr.settings import Whole
from mmtr.tokens import Tokens

from .common.arguments import ATTN_BACKEND, HEADS, STOCK, check_heads, check_patches, check_start, which_layers
from .common.attention import TokenAttention
from .common.layer import FFN, Projection, ReducibleLayer
from .common.plain import ReducibleBackbone
from .common.twins import backbone_twin, share, twin_of


class MultiheadAttention(TokenAttention, mmcv_transformer.MultiheadAttention):
    """mmcv's ``MultiheadAttention`` with a fused backend for self-attention; made by ``replace_with_twins``."""

    def forward(
        self,
        query: Tensor,
        key: Optional[Tensor] = None,
        value: Optional[Tensor] = None,
        identity: Optional[Tensor] = None,
        *args,
        branch: Optional[Callable[[Tensor], Tensor]] = None,
        **kwargs,
    ) -> Tensor:
        """Run attention with residual and dropout.

        Args:
            query: (B, N, C) queries.
            key, value, identity: As in mmcv's ``MultiheadAttention``.
            args, kwargs: mmcv's, such as masks. With one of them, or for cross-attention, the stock forward runs.
            branch: Computes the attention branch of ``query`` in place of ``self.branch``.

        Returns:
            (B, N, C).
        """
        if branch is not None:
            return identity + self.branch_dropout(branch(query))
        extras = any(v is not None for v in (*args, *kwargs.values()))
        self_attention = all(t is None or t is query for t in (key, value))
        if extras or not self_attention or not self.batch_first:
            return super().forward(query, key, value, identity, *args, **kwargs)
        return (query if identity is None else identity) + self.branch_dropout(self.branch(query))

    def at(self, tokens: Tokens) -> TokenAttention:
        """Return this module, the ``TokenAttention`` of any tokens: it does not depend on their positions."""
        return self

    @property
    def attention_dropout(self) -> float:
        """The current probability to drop an attention weight, see ``TokenAttention``."""
        return self.attn.dropout if self.training else 0.0

    def qkv(self, x: Tensor, kept: Optional[Tensor] = None) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens to queries, keys and values, see ``TokenAttention``."""
        qkv = self.in_projection(x, self.attn.in_proj_weight, self.attn.in_proj_bias)
        return qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)

    def project(self, x: Tensor) -> Tensor:
        """Apply the output projection, see ``TokenAttention``."""
        return self.attn.out_proj(x)

    def branch_dropout(self, x: Tensor) -> Tensor:
        """Apply the dropouts between branch and residual: (B, N, C) -> (B, N, C)."""
        return self.dropout_layer(self.proj_drop(x))


@twin_of(mmcv_transformer.MultiheadAttention)
def _attention_twin(module, attn_backend):
    twin = share(MultiheadAttention, module)
    twin.backend, twin.in_projection = attn_backend, Projection()
    return twin


class TransformerEncoderLayer(ReducibleLayer, vit.TransformerEncoderLayer):
    """mmseg's ViT layer on ``Tokens``; made from a stock one by ``reducible``."""

    def linears(self) -> dict[str, tuple[nn.Module, Tensor]]:
        """Return the linear layers by name, see ``ReducibleLayer``."""
        attn, (fc1, fc2) = self.attn.attn, self.ffn.ends()
        return dict(
            qkv=(self.attn.in_projection, attn.in_proj_weight),
            proj=(attn.out_proj, attn.out_proj.weight),
            fc1=(fc1, fc1.weight),
            fc2=(fc2, fc2.weight),
        )


def reducible(layer: vit.TransformerEncoderLayer, attn_backend: str) -> TransformerEncoderLayer:
    """Return the twin of a stock encoder layer, which runs on ``Tokens``."""
    twin = share(TransformerEncoderLayer, layer)
    twin.attn, twin.ffn = _attention_twin(layer.attn, attn_backend), share(FFN, layer.ffn)
    return twin


@MODELS.register_module()
class VisionTransformer(ReducibleBackbone, vit.VisionTransformer):
    """mmseg's ``VisionTransformer`` with three more arguments; other arguments, weights and outputs are mmseg's.

    Args:
        token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: no reduction.
        peft: ``dict(type=..., **settings)`` of a fine-tuning method, with the backbone frozen; None: all is trained.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        args, kwargs: mmseg's.

    Raises:
        UserError: The reducer, the PEFT or one of their settings does not exist; a setting has a value that is not
            allowed; the attention backend cannot run here; at the first forward: an image is smaller than a patch.
    """

    inherited = dict(STOCK, num_heads=HEADS, mlp_ratio=Whole(1, 64))
    final_norm_name = 'ln1'

    def __init__(
        self,
        *args,
        token_reduction: Optional[dict] = None,
        peft: Optional[dict] = None,
        attn_backend: ATTN_BACKEND = 'auto',
        **kwargs,
    ):
        check_start(kwargs['pretrained'], kwargs['init_cfg'])
        check_heads(kwargs['embed_dims'], kwargs['num_heads'])
        check_patches(kwargs['img_size'], kwargs['patch_size'])
        if kwargs['output_cls_token'] and not kwargs['with_cls_token']:
            raise UserError('output_cls_token=True needs the class token: set with_cls_token=True.')
        kwargs['out_indices'] = which_layers('out_indices', kwargs['out_indices'], kwargs['num_layers'])
        super().__init__(*args, **kwargs)
        self.make_tunable(attn_backend, token_reduction, peft)

    def _make_reducible(self, attn_backend):
        self.layers = ModuleList(reducible(layer, attn_backend) for layer in self.layers)

    def _add_positions(self, x, grid):
        x = self._pos_embeding(x, grid, self.pos_embed)
        return self.pre_ln(x) if self.pre_norm else x

    def _resize_positions(self, table, old, new):
        return self.resize_pos_embed(table, new, old, self.interpolate_mode)

    def _final_norm(self, x):
        return self.norm1(x) if self.final_norm else x


twin_of(vit.VisionTransformer)(backbone_twin(VisionTransformer))
