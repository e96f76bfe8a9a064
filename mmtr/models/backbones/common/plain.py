"""The forward pass of plain ViTs with token reduction, and loading of their pretrained weights."""

import math
from typing import Optional, Union

import torch
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.ops.resize import resize_patches, resize_positions
from mmtr.reducers import BackboneInfo, TokenReducer, build_token_reducer
from mmtr.tokens import Tokens

from .backbone import TunableBackbone
from .layer import run_layer
from .reduced_outputs import ReducedOutputs


class ReducibleBackbone(TunableBackbone):
    """Mixin for a plain ViT: embeds patches, runs the layers with a reducer, and returns feature maps.

    The backbone has ``patch_embed``, ``cls_token``, ``layers`` that run on ``Tokens``, ``out_indices``, ``img_size``
    (height, width) in pixels and ``patch_size`` of training. A subclass implements ``_add_positions`` and
    ``_final_norm``, and calls ``make_tunable`` when it is built.
    """

    with_cls_token = True
    num_registers = 0
    #: Whether queries and keys may be of different tokens, see ``BackboneInfo``.
    merges_apart = True
    out_origin = False
    output_cls_token = False
    #: Whether the final norm is applied to every output, or only to that of the last layer.
    norm_every_output = False
    #: What the outputs are made of, see ``BackboneInfo``.
    output = 'patches'
    #: Name of the final norm in checkpoints. A pretrained file may have one although this backbone has none.
    final_norm_name = 'norm'

    @property
    def num_prefix(self) -> int:
        """The number of prefix tokens: class token and registers."""
        return int(self.with_cls_token) + self.num_registers

    def build_reducer(self, token_reduction: Optional[dict]) -> TokenReducer:
        """Build a reducer for this backbone from the value of the key ``token_reduction``."""
        return build_token_reducer(token_reduction, self.shape)

    @property
    def shape(self) -> BackboneInfo:
        """Layers, channels and prefix tokens of the backbone, for its reducer and its PEFT."""
        return BackboneInfo(
            depth=len(self.layers),
            embed_dims=self.patch_embed.projection.out_channels,
            num_prefix=self.num_prefix,
            grid=self._training_grid(),
            merges_apart=self.merges_apart,
            output=self.output,
        )

    def token_schedule(self, shape: tuple[int, int]) -> list[int]:
        """Count the patch tokens in each layer for an image of ``shape`` (height, width) in pixels."""
        return self.token_reducer.token_schedule(self._grid_of(shape), len(self.layers))

    def _grid_of(self, shape):
        """Count the rows and columns of patches of an image of ``shape`` (height, width) in pixels."""
        return tuple(math.ceil(n / patch) for n, patch in zip(shape, self.patch_embed.projection.kernel_size))

    def _training_grid(self):
        return tuple(size // self.patch_size for size in self.img_size)

    def _table_grid(self):
        """Rows and columns of the position table."""
        return self._training_grid()

    def forward(self, inputs: Tensor) -> Union[tuple, ReducedOutputs]:
        """Extract feature maps from images.

        Args:
            inputs: (B, channels, height, width) normalised images.

        Returns:
            Tuple of (B, C, H, W), or what else the host gives, one for each of ``out_indices``; ``ReducedOutputs``
            with ``restore_at='after_head'``.

        Raises:
            UserError: An image is smaller than a patch.
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
        # Inside a jit trace, as of fvcore and the ONNX exporter, sizes are tensors; reducers need ints.
        grid = int(grid[0]), int(grid[1])
        x = self._sequence(x, grid)
        return Tokens(x, grid, num_prefix=self.num_prefix, gives_back=self.token_reducer.gives_back(grid))

    def _sequence(self, x, grid):
        """Prefix and patch tokens (B, P + H * W, C), with positions, from patch embeddings (B, H * W, C)."""
        x = self._add_positions(torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1), grid)
        return x if self.with_cls_token else x[:, 1:]

    def _add_positions(self, x, grid):
        """Add the position embedding to class and patch tokens (B, 1 + H * W, C), and insert registers between them."""
        raise NotImplementedError

    def _resize_positions(self, table, old, new):
        """Resize a position table (1, 1 + H * W, C) from the grid ``old`` to ``new``."""
        return resize_positions(table, old, new, 1)

    def _final_norm(self, x):
        """Apply the norm after the last layer."""
        raise NotImplementedError

    def _output(self, tokens):
        out = tokens.patches.transpose(1, 2).unflatten(2, tokens.grid).contiguous()
        return [out, tokens.x[:, 0]] if self.output_cls_token else out

    def _fitted(self, state, path):
        """Convert the weights of a file to this backbone; resize the patch embedding and the position table."""
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
                    f'no square, so it cannot be resized to {self._table_grid()}.'
                )
            state['pos_embed'] = self._resize_positions(positions, (side, side), self._table_grid())
        return state

    def not_in_files(self, name: str) -> bool:
        """Say whether a file may lack or have a weight; True for the final norm if this backbone has none."""
        return name.startswith(f'{self.final_norm_name}.') and name not in self.state_dict()


class OwnBackbone(ReducibleBackbone):
    """Mixin for a plain ViT that no stock library has: how it starts."""

    def init_weights(self) -> None:
        """Initialise as published, unless ``pretrained`` or ``init_cfg`` is given."""
        if self.init_cfg is None:
            self._init_as_published()
        elif self.pretrained_file:
            self.load_pretrained()
        else:
            return super().init_weights()
        self._init_parts()

    def _init_as_published(self):
        for module in self.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if hasattr(self, 'pos_embed'):  # not with rotary positions alone
            nn.init.trunc_normal_(self.pos_embed, std=0.02)
