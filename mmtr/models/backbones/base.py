"""What every backbone that reduces tokens does: embed, run the layers with a reducer, give maps."""
import math

import torch

from mmtr.errors import UserError
from mmtr.reducers import BackboneShape, TokenReducer, build_token_reducer
from mmtr.tokens import Tokens


class ReducibleBackbone:
    """Mixin of a plain ViT with ``patch_embed``, ``cls_token``, ``layers`` on ``Tokens`` and ``out_indices``.

    Its ``img_size`` (height, width) and ``patch_size`` are those of training. A subclass adds
    ``_add_positions`` and ``_final_norm``, and sets its reducer when it is built.
    """
    with_cls_token = True
    out_origin = False
    output_cls_token = False

    def set_token_reduction(self, token_reduction) -> None:
        """Use another reducer, ``dict(type=..., **settings)``, or None."""
        self.token_reducer = self.build_reducer(token_reduction)

    def build_reducer(self, token_reduction) -> TokenReducer:
        """The reducer of a value of the key ``token_reduction``, for this backbone."""
        return build_token_reducer(token_reduction, BackboneShape(
            depth=len(self.layers), embed_dims=self.cls_token.shape[-1], num_prefix=int(self.with_cls_token),
            grid=self._training_grid()))

    def token_schedule(self, shape) -> list[int]:
        """Patch tokens that each layer computes on for an image of ``shape`` (H, W) pixels."""
        grid = tuple(math.ceil(n / patch) for n, patch in zip(shape, self.patch_embed.projection.kernel_size))
        return self.token_reducer.token_schedule(grid, len(self.layers))

    def _training_grid(self):
        return tuple(size // self.patch_size for size in self.img_size)

    def forward(self, inputs):
        """(B, 3, height, width) pixels -> tuple of (B, C, H, W), one for each of ``out_indices``."""
        tokens = self._embed(inputs)
        outs = [self._output(tokens)] if self.out_origin else []
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            tokens = layer(tokens, self.token_reducer, i)
            if i in self.out_indices or i == last:
                full = self.token_reducer.restore(tokens)
                if i == last:
                    full = full.replace(x=self._final_norm(full.x))
                if i in self.out_indices:
                    outs.append(self._output(full))
        return tuple(outs)

    def _embed(self, inputs):
        patch = self.patch_embed.projection.kernel_size
        if inputs.shape[-2] < patch[0] or inputs.shape[-1] < patch[1]:
            raise UserError(f'An image of {inputs.shape[-2]}x{inputs.shape[-1]} pixels (height x width) is smaller '
                            f'than one patch of {patch[0]}x{patch[1]}: give larger images.')
        x, grid = self.patch_embed(inputs)
        # Inside a jit trace, as fvcore and the ONNX exporter make, sizes are tensors; reducers count with ints.
        grid = int(grid[0]), int(grid[1])
        x = self._add_positions(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1), grid)
        return Tokens(x if self.with_cls_token else x[:, 1:], grid, num_prefix=int(self.with_cls_token))

    def _add_positions(self, x, grid):
        """Class and patch tokens (B, 1 + H * W, C) with their position embedding."""
        raise NotImplementedError

    def _final_norm(self, x):
        """The norm after the last layer."""
        raise NotImplementedError

    def _output(self, tokens):
        out = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid).contiguous()
        return [out, tokens.x[:, 0]] if self.output_cls_token else out
