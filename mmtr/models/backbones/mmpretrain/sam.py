"""mmpretrain's ViTSAM, the image encoder of SAM, with fused attention, token reduction and PEFT."""

from typing import Callable, Optional

from mmengine.model import ModuleList
from mmpretrain.models.backbones import vit_sam
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.arguments import ATTN_BACKEND, which_layers
from mmtr.models.backbones.common.attention import TokenAttention
from mmtr.models.backbones.common.layer import FFN
from mmtr.models.backbones.common.plain import ReducibleBackbone
from mmtr.models.backbones.common.twins import share
from mmtr.models.backbones.vitdet.layer import DecomposedAttentionAt
from mmtr.reducers import TokenReducer
from mmtr.registry import MODELS
from mmtr.settings import Choice, Flag, Listed, Whole
from mmtr.tokens import Tokens

from .backbone import WIDTHS, Arch, MMPretrainBackbone, arguments
from .layer import EncoderLayer


class Attention(vit_sam.Attention):
    """mmpretrain's, whose linear layer ``qkv`` keeps its name: ``at`` has the methods of ``TokenAttention``."""

    backend: str
    #: Side of a window in patches; None: global.
    window: Optional[int]

    def forward(self, x: Tensor, branch: Optional[Callable[[Tensor], Tensor]] = None) -> Tensor:
        """Attend, without residual, as stock on a grid (B, H, W, C); or by ``branch``, if given, on (B, N, C)."""
        return super().forward(x) if branch is None else branch(x)

    def at(self, tokens: Tokens) -> TokenAttention:
        """Bind the attention to ``tokens``, whose positions it needs."""
        return DecomposedAttentionAt(self, tokens)


class TransformerEncoderLayer(EncoderLayer, vit_sam.TransformerEncoderLayer):
    """mmpretrain's layer of SAM on ``Tokens``; made by ``reducible``."""


def reducible(layer: nn.Module, attn_backend: str) -> nn.Module:
    """Return the twin of a stock layer, which runs on ``Tokens``."""
    twin = share(TransformerEncoderLayer, layer)
    twin.attn, twin.ffn = share(Attention, layer.attn), share(FFN, layer.ffn)
    twin.attn.backend, twin.attn.window = attn_backend, layer.window_size or None
    if not twin.attn.use_rel_pos:
        twin.attn.rel_pos_h = twin.attn.rel_pos_w = None
    return twin


@MODELS.register_module()
class ViTSAM(MMPretrainBackbone, vit_sam.ViTSAM):
    """mmpretrain's ``ViTSAM``: same arguments, weights and outputs, and three keys more.

    It is ``mmtr.ViTDet`` with a neck of two convolutions, see there for windows and positions. The neck needs a map, so
    tokens are given back before it, whatever ``out_type`` is.

    Args:
        token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: the stock model.
        peft: ``dict(type=..., **settings)`` of what is trained beside frozen weights; None: all is trained.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        args, kwargs: mmpretrain's.

    Raises:
        UserError: The reducer, the PEFT or one of their settings does not exist or cannot work; the backend
            cannot run here; at the first forward, an image is smaller than a patch.
    """

    inherited = dict(
        arguments(
            vit_sam.ViTSAM,
            out_channels=Whole(0, 2**14),
            window_size=Whole(0, 2**12),
            frozen_stages=Whole(-1, 256),
            use_abs_pos=Flag(),
            use_rel_pos=Flag(),
        ),
        arch=Arch(vit_sam.ViTSAM.arch_zoo, **WIDTHS, global_attn_indexes=Listed(Whole(0, 255))),
        out_type=Choice('raw', 'featmap', 'avg_featmap'),
    )
    with_cls_token = merges_apart = False
    num_extra_tokens = 0
    output = 'patches'

    def __init__(self, *args, token_reduction=None, peft=None, attn_backend: ATTN_BACKEND = 'auto', **kwargs):
        arch = kwargs['arch']
        if isinstance(arch, dict):
            which_layers('arch.global_attn_indexes', arch['global_attn_indexes'], arch['num_layers'])
        if kwargs['frozen_stages'] > 0 and not kwargs['use_abs_pos']:
            raise UserError(
                f'frozen_stages={kwargs["frozen_stages"]} freezes the position embedding, which use_abs_pos=False '
                'leaves out: set use_abs_pos=True or frozen_stages=-1.'
            )
        self._build(dict(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend))

    def _make_reducible(self, attn_backend):
        self.layers = ModuleList(reducible(layer, attn_backend) for layer in self.layers)
        if not self.use_abs_pos:
            self.pos_embed = None  # mmpretrain's ``init_weights`` asks for it

    def build_reducer(self, token_reduction: Optional[dict]) -> TokenReducer:
        """Build a reducer from the value of the key ``token_reduction``; it must give tokens back before the neck."""
        reducer = super().build_reducer(token_reduction)
        if reducer.restores_late and (self.out_channels or self.out_type == 'avg_featmap'):
            raise UserError(
                "token_reduction.restore_at='after_head' gives the head no map, which "
                f'out_channels={self.out_channels} and out_type={self.out_type!r} need: leave it out, or set '
                "out_channels=0 and out_type='raw'."
            )
        return reducer

    def _sequence(self, x, grid):
        if self.pos_embed is None:
            return x
        table = self.pos_embed.flatten(1, 2)
        return self.drop_after_pos(
            x + vit_sam.resize_pos_embed(table, self._training_grid(), grid, self.interpolate_mode, 0)
        )

    def _final_norm(self, x):
        return x

    def _output(self, tokens):
        x = ReducibleBackbone._output(self, tokens)
        return self._format_output(self.channel_reduction(x) if self.out_channels else x)

    def _with_fitted_positions(self, state, path):
        if self.pos_embed is not None and state.get('pos_embed', self.pos_embed).dim() == 4:
            self._prepare_pos_embed(state, '')
        self._prepare_relative_position(state, '')
        return state

    def not_in_files(self, name: str) -> bool:
        """See ``TunableBackbone``; a file may have a neck that this backbone has not."""
        return super().not_in_files(name) or (name.startswith('channel_reduction.') and not self.out_channels)
