"""The forward pass of backbones whose stages begin with an embedding and have attention with spatial reduction."""

from dataclasses import replace
from typing import Optional

from mmseg.models.utils import nlc_to_nchw
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.arguments import HEADS, STOCK, Initialisation, check_heads, check_start
from mmtr.models.backbones.common.embedding import embedded_grid
from mmtr.models.backbones.common.layer import run_layer
from mmtr.models.backbones.common.stages import StagedBackbone
from mmtr.reducers import BackboneInfo, TokenReducer
from mmtr.settings import Listed, Maybe, Whole
from mmtr.tokens import Tokens

#: Number of values in a list with one for each stage.
STAGES = dict(least=1, most=8)
#: Side, in pixels, of the image whose tokens the log counts; these backbones know no training size.
EXAMPLE = 512


def arguments(**others) -> dict:
    """Return what the arguments of a stock class may be."""
    lists = {name: Listed(Whole(1, 256), **STAGES) for name in ('patch_sizes', 'strides', 'sr_ratios')}
    return dict(
        STOCK,
        **lists,
        num_heads=Listed(HEADS, **STAGES),
        out_indices=Listed(Whole(0, 7), rising=True, **STAGES),
        init_cfg=Maybe(Initialisation(of_file=True)),
        **others,
    )


class PyramidBackbone(StagedBackbone):
    """Mixin for a backbone of stages: embedding, layers with a reducer in one stage, norm, feature map.

    A subclass implements ``blocks``, ``embeddings``, ``_norm`` and ``_make_reducible``.
    """

    inherited = arguments()
    merges_apart = True

    @property
    def embeddings(self) -> list[nn.Module]:
        """The patch embedding of each stage."""
        raise NotImplementedError

    @property
    def patch_size(self) -> int:
        """Pixels between the tokens of the first stage."""
        return self.embeddings[0].projection.stride[0]

    @property
    def img_size(self) -> tuple[int, int]:
        """The size (height, width) in pixels of an example; any other size works."""
        return EXAMPLE, EXAMPLE

    def width(self, block: nn.Module) -> int:
        """The number of channels of a block."""
        return block.attn.embed_dims

    def stage_grids(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (rows, columns) of tokens in each stage for an image of ``shape`` (height, width) in pixels."""
        grids = []
        for each in self.embeddings:
            shape = tuple(max(n, 0) for n in embedded_grid(each.projection, each.adap_padding, shape))
            grids.append(shape)
        return grids

    def stage_info(self, stage: int) -> BackboneInfo:
        """Return what the reducer of a stage, counted from 1, must know: what is left fills whole kernels."""
        grid = self.stage_grids((EXAMPLE, EXAMPLE))[stage - 1]
        return replace(super().stage_info(stage), grid=grid, multiple=self._kernel(self.blocks[stage - 1]))

    @staticmethod
    def _kernel(blocks):
        return max(int(getattr(block.attn, 'sr_ratio', 1)) for block in blocks)

    def build_reducer(self, token_reduction: Optional[dict]) -> TokenReducer:
        """Build a reducer for one stage from the value of the key ``token_reduction``."""
        reducer = super().build_reducer(token_reduction)
        self._check_start(reducer)
        return reducer

    def _check_start(self, reducer):
        """Raise a ``UserError`` if the reducer starts too early in its stage."""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Extract feature maps from images.

        Args:
            x: (B, channels, height, width) normalised images.

        Returns:
            (B, C, H, W), one for each of ``out_indices``.

        Raises:
            UserError: An image is too small for the spatial reduction of a stage.
        """
        # Inside a jit trace, as of fvcore and the ONNX exporter, sizes are tensors; grids need ints.
        outs, first, shape = [], 0, tuple(int(n) for n in x.shape[2:])
        for i, (blocks, grid) in enumerate(zip(self.blocks, self.stage_grids(shape))):
            if min(grid) < self._kernel(blocks):
                raise UserError(
                    f'An image of {shape[0]}x{shape[1]} pixels has {grid[0]}x{grid[1]} tokens in stage {i + 1}, fewer '
                    f'than its sr_ratio {self._kernel(blocks)} needs: give larger images.'
                )
            x, _ = self._embed(i, x)
            tokens, (reducer, start) = Tokens(x, grid), self.reducer_of(i)
            for j, block in enumerate(blocks):
                tokens = run_layer(block, tokens, reducer, start + j, self.peft, first - start)
                tokens = self._positioned(i, j, tokens)
            x = nlc_to_nchw(self._norm(i, reducer.restore(tokens).x), grid)
            if i in self.out_indices:
                outs.append(x)
            first += len(blocks)
        return outs

    def _embed(self, i, x):
        """Embed the patches of stage ``i``: tokens (B, H * W, C) and (H, W)."""
        return self.embeddings[i](x)

    def _positioned(self, i, j, tokens):
        """Add what stage ``i`` adds after block ``j``."""
        return tokens

    def _norm(self, i, x):
        """Apply the norm after stage ``i``."""
        raise NotImplementedError


def check_stages(count: int, out_indices, pretrained, init_cfg, widths, num_heads, **lists) -> None:
    """Check the arguments of a stock class against each other.

    Args:
        count: Number of stages.
        out_indices, pretrained, init_cfg, num_heads: Those of the class.
        widths: Number of channels of each stage.
        lists: The lists with a value for each stage, by name.

    Raises:
        UserError: A list has not a value for each stage, there is no such stage, or heads do not fit the channels.
    """
    check_start(pretrained, init_cfg)
    for key, values in dict(num_heads=num_heads, **lists).items():
        if len(values) != count:
            raise UserError(f'{key}={values} has {len(values)} values for {count} stages: give one for each.')
    if out_indices[-1] >= count:
        raise UserError(
            f'out_indices goes to {out_indices[-1]}, but there are {count} stages: choose up to {count - 1}.'
        )
    for width, heads in zip(widths, num_heads):
        check_heads(width, heads)
