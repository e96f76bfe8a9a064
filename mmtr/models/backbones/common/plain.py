"""The forward pass of plain ViTs with token reduction, and loading of their pretrained weights."""

import math
from dataclasses import replace
from typing import Optional, Union

import torch
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.ops.resize import resize_patches, resize_positions
from mmtr.reducers import BackboneInfo, TokenReducer, build_token_reducer
from mmtr.tokens import Tokens

from .backbone import TunableBackbone
from .layer import run_layer
from .open_outputs import OpenOutputs
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
    #: Number of last layers that a head runs with its queries, and whether tokens are reduced in them.
    query_layers = 0
    reduces_with_queries = False
    #: Name of the final norm in checkpoints. A pretrained file may have one although this backbone has none.
    final_norm_name = 'norm'

    @property
    def num_prefix(self) -> int:
        """The number of prefix tokens: class token and registers."""
        return int(self.with_cls_token) + self.num_registers

    def build_reducer(self, token_reduction: Optional[dict]) -> TokenReducer:
        """Build a reducer for this backbone from the value of the key ``token_reduction``."""
        whole = 0 if self.reduces_with_queries else self.query_layers
        shape = replace(self.shape, depth=len(self.layers) - whole)
        try:
            return build_token_reducer(token_reduction, shape)
        except UserError as error:
            if not whole:
                raise
            raise UserError(
                f'{error} The last {whole} of {len(self.layers)} layers run with the queries of the head and do not '
                'count; with reduce_with_queries=True in the head they do.'
            ) from None

    def leave_layers(self, count: int, reduces: bool) -> None:
        """Leave the last layers to a head, which runs them with its queries; see ``OpenOutputs``.

        Args:
            count: Number of these layers.
            reduces: Whether tokens are reduced in them too; otherwise they are restored before, and a reducer counts
                the other layers alone.

        Raises:
            UserError: The backbone cannot do that, or the reducer cannot.
        """
        depth, last = len(self.layers), (len(self.layers) - 1,)
        if not self.merges_apart or any(getattr(layer.attn, 'window', None) for layer in self.layers):
            raise UserError(
                f'{type(self).__name__} has windows or a bias of positions, which learned queries cannot join: choose '
                'another backbone, such as mmtr.DINOv2.'
            )
        if not 0 < count < depth:
            raise UserError(f'num_query_layers={count} must be from 1 to {depth - 1}: the backbone has {depth} layers.')
        if tuple(self.out_indices) != last or self.out_origin or self.output_cls_token:
            raise UserError(
                f'backbone.out_indices={list(self.out_indices)} must be the last layer alone, [{last[0]}], without '
                'class token: the head with queries reads nothing else.'
            )
        if any(side % self.patch_size for side in self.img_size):
            fitting = tuple(side // self.patch_size * self.patch_size for side in self.img_size)
            raise UserError(
                f'backbone.img_size={tuple(self.img_size)} must be a multiple of the patches of {self.patch_size} '
                f'pixels, such as {fitting}: a patch at the border would be padded, and masks would not fit the images.'
            )
        self.query_layers, self.reduces_with_queries = count, reduces
        if self.token_reduction is not None:
            self.set_token_reduction(self.token_reduction)

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
        grid = self._grid_of(shape)
        whole = 0 if self.reduces_with_queries else self.query_layers
        schedule = self.token_reducer.token_schedule(grid, len(self.layers) - whole)
        return schedule + [grid[0] * grid[1]] * whole

    def _grid_of(self, shape):
        """Count the rows and columns of patches of an image of ``shape`` (height, width) in pixels."""
        return tuple(math.ceil(n / patch) for n, patch in zip(shape, self.patch_embed.projection.kernel_size))

    def _training_grid(self):
        return tuple(size // self.patch_size for size in self.img_size)

    def _table_grid(self):
        """Rows and columns of the position table."""
        return self._training_grid()

    def forward(self, inputs: Tensor) -> Union[tuple, ReducedOutputs, OpenOutputs]:
        """Extract feature maps from images.

        Args:
            inputs: (B, channels, height, width) normalised images.

        Returns:
            Tuple of (B, C, H, W), or what else the host gives, one for each of ``out_indices``; ``ReducedOutputs``
            with ``restore_at='after_head'``; ``OpenOutputs`` after ``leave_layers``.

        Raises:
            UserError: An image is smaller than a patch.
        """
        tokens = self._embed(inputs)
        if self.query_layers:
            for i in range(len(self.layers) - self.query_layers):
                tokens = run_layer(self.layers[i], tokens, self.token_reducer, i, self.peft)
            return OpenOutputs(self, tokens, inputs.shape[-2:])
        dense, late = self.output == 'patches', self.token_reducer.restores_late
        output = (lambda tokens: tokens) if late else self._output
        outs = [output(tokens)] if self.out_origin else []
        last = len(self.layers) - 1
        for i, layer in enumerate(self.layers):
            tokens = run_layer(layer, tokens, self.token_reducer, i, self.peft)
            if i in self.out_indices or i == last:
                full = self.token_reducer.restore(tokens) if dense and not late else tokens
                if i == last or self.norm_every_output:
                    full = self.normed(full)
                if i in self.out_indices:
                    outs.append(output(full))
        return ReducedOutputs(outs, self.token_reducer) if late else tuple(outs)

    def normed(self, tokens: Tokens) -> Tokens:
        """Return tokens after the norm of the last layer."""
        return tokens.replace(x=self._final_norm(tokens.x))

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
        positions, own = state.get('pos_embed'), getattr(self, 'pos_embed', None)
        if positions is not None and own is not None and positions.shape != own.shape:
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
