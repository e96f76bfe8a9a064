"""mmseg's VisionTransformer with fused attention and token reduction."""

from mmengine.model import ModuleList
from mmseg.models.backbones import vit

from mmtr.errors import UserError
from mmtr.models.backbones.common.arguments import (
    ATTN_BACKEND,
    HEADS,
    STOCK,
    check_heads,
    check_patches,
    check_start,
    which_layers,
)
from mmtr.models.backbones.common.layer import reducible
from mmtr.models.backbones.common.plain import ReducibleBackbone
from mmtr.models.backbones.common.twins import share, twin_of
from mmtr.ops.attention import check_backend
from mmtr.registry import MODELS
from mmtr.settings import Whole


@MODELS.register_module()
class VisionTransformer(ReducibleBackbone, vit.VisionTransformer):
    """mmseg's ``VisionTransformer``: same arguments, weights and outputs, and three keys more.

    Args:
        token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: the stock model.
        peft: ``dict(type=..., **settings)`` of what is trained beside frozen weights; None: all is trained.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        args, kwargs: mmseg's.

    Raises:
        UserError: The reducer, the PEFT or one of their settings does not exist or cannot work; the backend
            cannot run here; at the first forward, an image is smaller than a patch.
    """

    inherited = dict(STOCK, num_heads=HEADS, mlp_ratio=Whole(1, 64))
    final_norm_name = 'ln1'

    def __init__(self, *args, token_reduction=None, peft=None, attn_backend: ATTN_BACKEND = 'auto', **kwargs):
        check_start(kwargs['pretrained'], kwargs['init_cfg'])
        check_heads(kwargs['embed_dims'], kwargs['num_heads'])
        check_patches(kwargs['img_size'], kwargs['patch_size'])
        if kwargs['output_cls_token'] and not kwargs['with_cls_token']:
            raise UserError('output_cls_token=True needs the class token: set with_cls_token=True.')
        kwargs['out_indices'] = which_layers('out_indices', kwargs['out_indices'], kwargs['num_layers'])
        super().__init__(*args, **kwargs)
        self._make_reducible(attn_backend)
        self.set_token_reduction(token_reduction)
        self.set_peft(peft)

    def _make_reducible(self, attn_backend):
        check_backend(attn_backend)
        self.layers = ModuleList(reducible(layer, attn_backend) for layer in self.layers)

    def _add_positions(self, x, grid):
        x = self._pos_embeding(x, grid, self.pos_embed)
        return self.pre_ln(x) if self.pre_norm else x

    def _resize_positions(self, table, old, new):
        return self.resize_pos_embed(table, new, old, self.interpolate_mode)

    def _final_norm(self, x):
        return self.norm1(x) if self.final_norm else x


@twin_of(vit.VisionTransformer)
def _twin(module, attn_backend):
    twin = share(VisionTransformer, module)
    twin._make_reducible(attn_backend)
    twin.set_token_reduction(None)
    twin.set_peft(None)
    return twin
