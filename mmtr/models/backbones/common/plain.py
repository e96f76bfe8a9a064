"""What every backbone that reduces tokens does: embed, run the layers with a reducer, give maps."""

import math

import torch

from mmtr.errors import UserError
from mmtr.ops.resize import resize_patches, resize_positions
from mmtr.reducers import BackboneInfo, TokenReducer, build_token_reducer
from mmtr.tokens import Tokens

from .backbone import TunableBackbone
from .layer import run_layer
from .reduced_outputs import ReducedOutputs


class ReducibleBackbone(TunableBackbone):
    """Mixin of a plain ViT with ``patch_embed``, ``cls_token``, ``layers`` on ``Tokens`` and ``out_indices``.

    Its ``img_size`` (height, width) and ``patch_size`` are those of training. A subclass adds
    ``_add_positions`` and ``_final_norm``, and sets its reducer, then its ``peft``, when it is built.
    """

    with_cls_token = True
    num_registers = 0
    out_origin = False
    output_cls_token = False
    #: Whether the final norm is on every output, not on that of the last layer alone.
    norm_every_output = False
    #: What its outputs are made of, see ``BackboneInfo``.
    output = 'patches'
    #: Name of the final norm, which a pretrained file may have in vain.
    final_norm_name = 'norm'

    @property
    def num_prefix(self) -> int:
        """Tokens before those of the patches: class token and registers."""
        return int(self.with_cls_token) + self.num_registers

    def build_reducer(self, token_reduction) -> TokenReducer:
        """The reducer of a value of the key ``token_reduction``, for this backbone."""
        return build_token_reducer(token_reduction, self.shape)

    def init_weights(self):
        """As stock; but what is to be frozen must be all in the pretrained file, of which stock takes what it finds.

        So must what is under a prefix, which stock forgets.
        """
        if self.pretrained_file and (self.peft is not None or self.init_cfg.get('prefix')):
            self.load_pretrained()
        else:
            super().init_weights()
        self._init_parts()

    @property
    def shape(self) -> BackboneInfo:
        """What its reducer and its PEFT are told of it."""
        return BackboneInfo(
            depth=len(self.layers),
            embed_dims=self.patch_embed.projection.out_channels,
            num_prefix=self.num_prefix,
            grid=self._training_grid(),
            output=self.output,
        )

    def token_schedule(self, shape) -> list[int]:
        """Patch tokens that each layer computes on for an image of ``shape`` (H, W) pixels."""
        return self.token_reducer.token_schedule(self._grid_of(shape), len(self.layers))

    def _grid_of(self, shape):
        """Patches of an image of ``shape`` (H, W) pixels."""
        return tuple(math.ceil(n / patch) for n, patch in zip(shape, self.patch_embed.projection.kernel_size))

    def _training_grid(self):
        return tuple(size // self.patch_size for size in self.img_size)

    def forward(self, inputs):
        """(B, 3, height, width) pixels -> tuple of outputs, (B, C, H, W), one for each of ``out_indices``.

        With ``restore_at='after_head'``: ``ReducedOutputs``.
        """
        tokens = self._embed(inputs)
        dense, late = self.output == 'patches', self.token_reducer.restores_late
        output = (lambda tokens: tokens) if late else self._output
        outs = [output(tokens)] if self.out_origin else []
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            tokens = run_layer(layer, tokens, self.token_reducer, i, self.peft)
            if i in self.out_indices or i == last:
                full = self.token_reducer.restore(tokens) if dense and not late else tokens
                if i == last or self.norm_every_output:
                    full = full.replace(x=self._final_norm(full.x))
                if i in self.out_indices:
                    outs.append(output(full))
        return ReducedOutputs(outs, self.token_reducer) if late else tuple(outs)

    def _embed(self, inputs):
        patch = self.patch_embed.projection.kernel_size
        if inputs.shape[-2] < patch[0] or inputs.shape[-1] < patch[1]:
            raise UserError(
                f'An image of {inputs.shape[-2]}x{inputs.shape[-1]} pixels (height x width) is smaller '
                f'than one patch of {patch[0]}x{patch[1]}: give larger images.'
            )
        x, grid = self.patch_embed(inputs)
        # Inside a jit trace, as fvcore and the ONNX exporter make, sizes are tensors; reducers count with ints.
        grid = int(grid[0]), int(grid[1])
        x = self._sequence(x, grid)
        return Tokens(x, grid, num_prefix=self.num_prefix, gives_back=self.token_reducer.gives_back(grid))

    def _sequence(self, x, grid):
        """Prefix and patch tokens (B, P + H * W, C), with positions, from patch embeddings (B, H * W, C)."""
        x = self._add_positions(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1), grid)
        return x if self.with_cls_token else x[:, 1:]

    def _add_positions(self, x, grid):
        """Class and patch tokens (B, 1 + H * W, C) with their position embedding; registers go between them."""
        raise NotImplementedError

    def _resize_positions(self, table, old, new):
        """A position table (1, 1 + H * W, C) for another grid."""
        return resize_positions(table, old, new, 1)

    def _final_norm(self, x):
        """The norm after the last layer."""
        raise NotImplementedError

    def _output(self, tokens):
        out = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid).contiguous()
        return [out, tokens.x[:, 0]] if self.output_cls_token else out

    def _fitted(self, state, path):
        """See ``TunableBackbone``; patches and position table are resized."""
        state, key = dict(state), 'patch_embed.projection.weight'
        if key in state:
            state[key] = resize_patches(state[key], self.patch_embed.projection.kernel_size)
        return self._with_fitted_positions(state, path)

    def _with_fitted_positions(self, state, path):
        positions = state.get('pos_embed')
        if positions is not None and positions.shape != self.pos_embed.shape:
            side = math.isqrt(positions.shape[1] - 1)
            if side * side != positions.shape[1] - 1:
                raise UserError(
                    f"The position table of '{path}' is of {positions.shape[1] - 1} patches, which is "
                    f'no square, so it cannot be resized to {self._training_grid()}.'
                )
            state['pos_embed'] = self._resize_positions(positions, (side, side), self._training_grid())
        return state

    def not_in_files(self, name):
        """See ``TunableBackbone``; the norm after the last layer, where this backbone has none."""
        return name.startswith(f'{self.final_norm_name}.') and name not in self.state_dict()
