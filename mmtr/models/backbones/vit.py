"""mmseg's VisionTransformer with fused attention and token reduction."""
from mmengine.model import ModuleList
from mmseg.models.backbones import vit

from mmtr.models.layers import reducible
from mmtr.models.twins import share, twin_of
from mmtr.ops.attention import check_backend
from mmtr.registry import MODELS

from .base import ReducibleBackbone


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
    final_norm_name = 'ln1'

    def __init__(self, *args, token_reduction=None, peft=None, attn_backend='auto', **kwargs):
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
