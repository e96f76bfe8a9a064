"""mmseg's VisionTransformer with fused attention and token reduction."""
import torch
from mmengine.model import ModuleList
from mmseg.models.backbones import vit

from mmtr.errors import UserError
from mmtr.models.layers import reducible
from mmtr.models.twins import share, twin_of
from mmtr.ops.attention import check_backend
from mmtr.reducers import BackboneShape, build_token_reducer
from mmtr.registry import MODELS
from mmtr.tokens import Tokens


@MODELS.register_module()
class VisionTransformer(vit.VisionTransformer):
    """mmseg's ``VisionTransformer``: same arguments, weights and outputs, and two keys more.

    Args:
        token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: the stock model.
        attn_backend: ``auto | sdpa | xformers | math``, see ``mmtr.ops.attention``.
        args, kwargs: mmseg's.

    Raises:
        UserError: The reducer or one of its settings does not exist or cannot work; the backend
            cannot run here; at the first forward, an image is smaller than a patch.
    """

    def __init__(self, *args, token_reduction=None, attn_backend='auto', **kwargs):
        super().__init__(*args, **kwargs)
        self._make_reducible(attn_backend)
        self.set_token_reduction(token_reduction)

    def _make_reducible(self, attn_backend):
        check_backend(attn_backend)
        self.layers = ModuleList(reducible(layer, attn_backend) for layer in self.layers)

    def set_token_reduction(self, token_reduction) -> None:
        """Use another reducer, ``dict(type=..., **settings)``, or None."""
        self.token_reducer = build_token_reducer(token_reduction, BackboneShape(
            depth=len(self.layers), embed_dims=self.cls_token.shape[-1], num_prefix=int(self.with_cls_token),
            grid=tuple(size // self.patch_size for size in self.img_size)))

    def train(self, mode=True):
        """As stock, and returns the module as ``nn.Module.train`` does."""
        super().train(mode)
        return self

    def forward(self, inputs):
        """(B, 3, height, width) pixels -> tuple of (B, C, H, W), one for each of ``out_indices``."""
        tokens = self._embed(inputs)
        outs = [self._output(tokens)] if self.out_origin else []
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            tokens = layer(tokens, self.token_reducer, i)
            if i in self.out_indices or i == last:
                full = self.token_reducer.restore(tokens)
                if i == last and self.final_norm:
                    full = full.replace(x=self.norm1(full.x))
                if i in self.out_indices:
                    outs.append(self._output(full))
        return tuple(outs)

    def _embed(self, inputs):
        patch = self.patch_embed.projection.kernel_size
        if inputs.shape[-2] < patch[0] or inputs.shape[-1] < patch[1]:
            raise UserError(f'An image of {inputs.shape[-2]}x{inputs.shape[-1]} pixels (height x width) is smaller '
                            f'than one patch of {patch[0]}x{patch[1]}: give larger images.')
        x, grid = self.patch_embed(inputs)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        x = self._pos_embeding(x, grid, self.pos_embed)
        if not self.with_cls_token:
            x = x[:, 1:]
        if self.pre_norm:
            x = self.pre_ln(x)
        # Inside a jit trace, as fvcore and the ONNX exporter make, sizes are tensors; reducers count with ints.
        return Tokens(x, (int(grid[0]), int(grid[1])), num_prefix=int(self.with_cls_token))

    def _output(self, tokens):
        out = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid).contiguous()
        return [out, tokens.x[:, 0]] if self.output_cls_token else out


@twin_of(vit.VisionTransformer)
def _twin(module, attn_backend):
    twin = share(VisionTransformer, module)
    twin._make_reducible(attn_backend)
    twin.set_token_reduction(None)
    return twin
