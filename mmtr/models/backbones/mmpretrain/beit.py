"""mmpretrain's BEiTViT (BEiT, BEiT v2, EVA), with fused attention, token reduction and PEFT."""

from mmengine.model import ModuleList
from mmpretrain.models.backbones import beit
from mmpretrain.models.utils import BEiTAttention as StockAttention
from torch import nn

from mmtr.errors import UserError
from mmtr.models.backbones.beit.backbone import INDEX, TABLE, RelativeTables
from mmtr.models.backbones.beit.layer import BiasedAttention, BiasedLayer
from mmtr.models.backbones.common.arguments import ATTN_BACKEND
from mmtr.models.backbones.common.layer import FFN, Projection
from mmtr.models.backbones.common.twins import share
from mmtr.registry import MODELS
from mmtr.settings import Choice, Either, Flag, Number, Whole

from .backbone import MMPretrainBackbone, arguments
from .layer import check_scale

SHARED = 'rel_pos_bias'


class BEiTAttention(BiasedAttention, StockAttention):
    """mmpretrain's ``BEiTAttention`` with a fused backend; made by ``reducible``."""


class BEiTTransformerEncoderLayer(BiasedLayer, beit.BEiTTransformerEncoderLayer):
    """mmpretrain's BEiT layer on ``Tokens``; made by ``reducible``."""

    with_cp = False


def reducible(layer: nn.Module, attn_backend: str, shared: nn.Module) -> nn.Module:
    """Return the twin of a stock layer, which runs on ``Tokens``; ``shared`` has the table of all layers, if any."""
    check_scale(layer.attn)
    twin = share(BEiTTransformerEncoderLayer, layer)
    twin.attn, twin.ffn = share(BEiTAttention, layer.attn), share(FFN, layer.ffn)
    twin.attn.backend, twin.attn.in_projection = attn_backend, Projection()
    twin.attn.__dict__['shared'] = shared  # not as a child: its weights keep one name
    return twin


@MODELS.register_module()
class BEiTViT(RelativeTables, MMPretrainBackbone, beit.BEiTViT):
    """mmpretrain's ``BEiTViT``: same arguments, weights and outputs, and three keys more.

    With a bias of relative positions, mmpretrain's takes images of ``img_size`` alone. Here the tables are resized for
    an image of another size, and for weights of another size, see ``mmtr.BEiT``. A file with one table for all layers
    also fits a backbone with a table in each, as in mmpretrain.

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

    inherited = arguments(
        beit.BEiTViT,
        bias=Either(Choice('qv_bias'), Flag()),
        frozen_stages=Whole(-1, 256),
        layer_scale_init_value=Number(least=0, most=1000),
        **{name: Flag() for name in ('use_abs_pos_emb', 'use_rel_pos_bias', 'use_shared_rel_pos_bias')},
    )
    merges_apart = False

    def __init__(self, *args, token_reduction=None, peft=None, attn_backend: ATTN_BACKEND = 'auto', **kwargs):
        if kwargs['use_rel_pos_bias'] and kwargs['use_shared_rel_pos_bias']:
            raise UserError(
                'use_rel_pos_bias=True and use_shared_rel_pos_bias=True exclude each other: set one of them to False.'
            )
        if not kwargs['with_cls_token'] and (kwargs['use_rel_pos_bias'] or kwargs['use_shared_rel_pos_bias']):
            raise UserError(
                "with_cls_token=False does not fit mmpretrain's bias of relative positions, which has a class token: "
                'set use_rel_pos_bias=False and use_shared_rel_pos_bias=False.'
            )
        self._build(dict(kwargs, token_reduction=token_reduction, peft=peft, attn_backend=attn_backend))

    def _make_reducible(self, attn_backend):
        self.layers = ModuleList(reducible(layer, attn_backend, self.rel_pos_bias) for layer in self.layers)
        # EVA's configs have no bias at all.
        self.merges_apart = all(layer.attn.at(None).merges_apart for layer in self.layers)

    def _sequence(self, x, grid):
        return self._add_positions(self._with_prefix(x), grid)

    def _add_positions(self, x, grid):
        return self.drop_after_pos(x) if self.pos_embed is None else super()._add_positions(x, grid)

    def _fitted(self, state, path):
        return super()._fitted(self._handed_out(dict(state)), path)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Before mmpretrain's own hook, whose ``scipy.interpolate.interp2d`` is gone since SciPy 1.14.
        self.fit_tables(self._handed_out(state_dict, prefix), 'the checkpoint', prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _handed_out(self, state, prefix=''):
        """Give each layer the table that all layers of a file share, in place, if this backbone has one in each."""
        table = f'{prefix}{SHARED}.{TABLE}'
        if self.use_rel_pos_bias and table in state:
            shared = state.pop(table)
            state.pop(f'{prefix}{SHARED}.{INDEX}', None)
            for i in range(len(self.layers)):
                state[f'{prefix}layers.{i}.attn.{TABLE}'] = shared.clone()
        return state
