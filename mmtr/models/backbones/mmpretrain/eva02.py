"""mmpretrain's ViTEVA02, with fused attention, token reduction and PEFT."""

from typing import Callable, Optional

from mmengine.model import ModuleList
from mmpretrain.models.backbones import vit_eva02
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.arguments import ATTN_BACKEND
from mmtr.models.backbones.common.attention import TokenAttention
from mmtr.models.backbones.common.rotary_layer import RotaryAttentionAt
from mmtr.models.backbones.common.twins import share
from mmtr.ops.rotary import evens_first, rotary_table, spread_over_neighbours
from mmtr.registry import MODELS
from mmtr.settings import PROBABILITY, Flag
from mmtr.tokens import Tokens

from .backbone import MMPretrainBackbone, arguments
from .layer import EncoderLayer, SwiGLU, check_scale


class AttentionWithRoPE(vit_eva02.AttentionWithRoPE):
    """mmpretrain's, whose linear layer ``qkv`` keeps its name: ``at`` has the methods of ``TokenAttention``."""

    backend: str
    window = None

    def forward(
        self,
        x: Tensor,
        patch_resolution: Optional[tuple[int, int]] = None,
        branch: Optional[Callable[[Tensor], Tensor]] = None,
    ) -> Tensor:
        """Attend, without residual, as stock; or by ``branch``, if given."""
        return super().forward(x, patch_resolution) if branch is None else self.proj_drop(branch(x))

    def at(self, tokens: Tokens) -> TokenAttention:
        """Bind the attention to ``tokens``, whose positions it needs."""
        return NeighboursAt(self, tokens)


class NeighboursAt(RotaryAttentionAt):
    """``AttentionWithRoPE`` bound to tokens; neighbouring channels are the pairs that are rotated."""

    @property
    def attention_dropout(self) -> float:
        """See ``TokenAttention``."""
        return self.module.attn_drop.p if self.module.training else 0.0

    def project_in(self, x: Tensor) -> Tensor:
        """See ``RotaryAttentionAt``."""
        return self.module.qkv(x)

    def paired(self, x: Tensor) -> Tensor:
        """See ``RotaryAttentionAt``; the same order for queries and keys leaves their products as they are."""
        return evens_first(x)

    def project(self, x: Tensor) -> Tensor:
        """See ``TokenAttention``."""
        return self.module.proj(x)


class EVA02EndcoderLayer(EncoderLayer, vit_eva02.EVA02EndcoderLayer):
    """mmpretrain's layer of EVA-02 on ``Tokens``; made by ``reducible``."""

    @property
    def ffn(self) -> nn.Module:
        """The FFN, which is called ``mlp``."""
        return self.mlp

    def _attend(self, x, tokens, branch):
        return tokens.x + self.drop_path(self.attn(x, branch=branch))

    def _feed(self, x, tokens, branch):
        return tokens.x + self.drop_path(self.mlp(x, branch=branch))


def reducible(layer: nn.Module, attn_backend: str) -> nn.Module:
    """Return the twin of a stock layer, which runs on ``Tokens``."""
    check_scale(layer.attn)
    twin = share(EVA02EndcoderLayer, layer)
    twin.attn, twin.mlp = share(AttentionWithRoPE, layer.attn), share(SwiGLU, layer.mlp)
    twin.attn.backend = attn_backend
    return twin


@MODELS.register_module()
class ViTEVA02(MMPretrainBackbone, vit_eva02.ViTEVA02):
    """mmpretrain's ``ViTEVA02``: same arguments, weights and outputs, and three keys more.

    Rotary positions are those of mmpretrain, which differ from the release that ``mmtr.EVA02`` follows: they are scaled
    to half of the channels of a head, and the two channels of a pair turn by different angles. They are
    computed from the grid of the image in each pass, and the buffers of mmpretrain stay as they are.
    ``layer_scale_init_value`` and ``frozen_stages`` do not reach mmpretrain's layers, so they are no settings here.

    Args:
        out_type: mmpretrain's, or ``avg_all``: as ``avg_featmap``, but of class token and patches.
        token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: the stock model.
        peft: ``dict(type=..., **settings)`` of what is trained beside frozen weights; None: all is trained.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        args, kwargs: mmpretrain's.

    Raises:
        UserError: The reducer, the PEFT or one of their settings does not exist or cannot work; the backend
            cannot run here; at the first forward, an image is smaller than a patch.
    """

    inherited = arguments(vit_eva02.ViTEVA02, sub_ln=Flag(), proj_drop_rate=PROBABILITY)
    decided = ('frozen_stages', 'layer_scale_init_value')
    head_multiple = 4

    def __init__(self, *args, token_reduction=None, peft=None, attn_backend: ATTN_BACKEND = 'auto', **kwargs):
        self._build(dict(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend))

    def _make_reducible(self, attn_backend):
        if any(layer.attn.rope is not self.rope for layer in self.layers):
            raise UserError('layer_cfgs sets rope, but all layers must have the rotary positions of the backbone.')
        self.layers = ModuleList(reducible(layer, attn_backend) for layer in self.layers)

    def _embed(self, inputs):
        tokens = super()._embed(inputs)
        channels = self.embed_dims // self.num_heads
        table = rotary_table(tokens.grid, channels, channels // 2, device=tokens.x.device)
        return tokens.replace(rotary=(spread_over_neighbours(table),))

    def _with_fitted_positions(self, state, path):
        state = {name: value for name, value in state.items() if not _follows(name)}
        return super()._with_fitted_positions(state, path)

    def not_in_files(self, name: str) -> bool:
        """See ``TunableBackbone``; the buffers of rotary positions follow from the grid."""
        return super().not_in_files(name) or _follows(name)


def _follows(name):
    return name.endswith(('rope.freqs_cos', 'rope.freqs_sin'))
