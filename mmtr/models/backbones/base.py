"""What every backbone that reduces tokens does: embed, run the layers with a reducer, give maps."""
import torch

from mmtr.errors import UserError
from mmtr.peft import build_peft
from mmtr.peft.freezing import freeze, frozen_modules
from mmtr.reducers import BackboneShape, build_token_reducer
from mmtr.tokens import Tokens


class ReducibleBackbone:
    """Mixin of a plain ViT with ``patch_embed``, ``cls_token``, ``layers`` on ``Tokens`` and ``out_indices``.

    Its ``img_size`` (height, width) and ``patch_size`` are those of training. A subclass adds
    ``_add_positions`` and ``_final_norm``, and sets its reducer, then its ``peft``, when it is built.
    """
    with_cls_token = True
    out_origin = False
    output_cls_token = False

    def set_token_reduction(self, token_reduction) -> None:
        """Use another reducer, ``dict(type=..., **settings)``, or None."""
        reducer = build_token_reducer(token_reduction, self.shape)
        if getattr(self, 'peft', None) is not None:
            self.peft.check_reducer(reducer)
        self.token_reducer = reducer

    def set_peft(self, peft) -> None:
        """Train what ``dict(type=..., **settings)`` says, and freeze all but that and the reducer; None: train all.

        Once, when the backbone is built and has its reducer.
        """
        self.peft = None
        if peft is not None:
            self.peft = build_peft(peft, self.shape)
            self.peft.check_reducer(self.token_reducer)
            self.peft.attach(self.layers)
            freeze(self)

    def train(self, mode=True):
        """As stock, but what is frozen stays in eval mode: a fixed function, without dropout and drop path."""
        super().train(mode)
        if self.peft is not None:
            for module in frozen_modules(self):
                module.eval()
        return self

    def init_weights(self):
        """As stock, which may touch every module; what ``peft`` trains then starts from its own."""
        super().init_weights()
        if self.peft is not None:
            self.peft.init_weights()

    @property
    def shape(self) -> BackboneShape:
        """What its reducer and its PEFT are told of it."""
        return BackboneShape(
            depth=len(self.layers), embed_dims=self.cls_token.shape[-1], num_prefix=int(self.with_cls_token),
            grid=self._training_grid())

    def _training_grid(self):
        return tuple(size // self.patch_size for size in self.img_size)

    def forward(self, inputs):
        """(B, 3, height, width) pixels -> tuple of (B, C, H, W), one for each of ``out_indices``."""
        tokens = self._embed(inputs)
        outs = [self._output(tokens)] if self.out_origin else []
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            tokens = layer(tokens, self.token_reducer, i, self.peft)
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
