"""SegFormer++: queries and keys merge apart, within attention alone."""

from dataclasses import dataclass
from typing import Any, Optional, Union

from torch import Tensor

from mmtr.errors import UserError
from mmtr.ops.bipartite import merge_patches, unmerge_patches
from mmtr.ops.cells import cell_matching, cells_of, merging, whole_cells
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import SHARE, Choice, Maybe, OneOrMore
from mmtr.tokens import Tokens

from .base import BackboneInfo, TokenReducer
from .noted_matching import merged_as_noted


@dataclass(frozen=True)
class Cells:
    """How tokens merge into those of cells.

    Args:
        cell: Rows and columns of a cell.
        share: Share of the tokens that merge into the most similar top left token; None: each cell becomes its mean.
    """

    cell: int
    share: Optional[float] = None

    def matching(self, x: Tensor, grid: tuple[int, int]) -> Any:
        """Match tokens (B, H * W, C) that form ``grid``; None: nothing merges."""
        if self.left(grid) == grid[0] * grid[1]:
            return None
        if self.share is None:
            return whole_cells(x.shape[0], grid, self.cell, x.device)
        return cell_matching(x, grid, self.share, self.cell)

    def left(self, grid: tuple[int, int]) -> int:
        """Count the tokens that are left of a grid."""
        if self.share is None:
            return cells_of(grid, self.cell)
        return grid[0] * grid[1] - merging(grid, self.share, self.cell)


#: For each of four stages: how queries merge, how keys do.
PRESETS = {
    'hq': [(None, Cells(2, 0.6))] * 2 + [(Cells(4, 0.8), None)] * 2,
    'fast': [(None, Cells(4, 0.9))] * 2 + [(Cells(4, 0.9), None)] * 2,
    '2x2': [(Cells(2), None)] * 4,
}


@TOKEN_REDUCERS.register_module()
class SegFormerPlusPlus(TokenReducer):
    """SegFormer++ (Kienzle et al., "Efficient Token-Merging Strategies for High-Resolution Semantic Segmentation", MIPR
    2024, Sec. 3): queries, or keys and values, merge before the product of attention; the FFN sees all tokens.

    It works in all stages of a backbone with spatial reduction, where keys merge after it; a plain ViT is treated as
    the third stage. The output of a merged query is copied to all tokens that it stands for.

    Args:
        backbone: Layers and stages of the backbone.
        preset: The paper's: ``hq`` merges 0.6 of the keys in 2x2 cells in stages 1 and 2, and 0.8 of the queries in
            4x4 cells in stages 3 and 4; ``fast`` merges 0.9 in 4x4 cells in all of these; ``2x2`` averages queries
            over 2x2 cells in all stages.
        share: Share of tokens that merge, in place of the preset's; or a list with one for each stage.

    Raises:
        UserError: A setting has a value that is not allowed, alone or with another one; attention of the backbone is
            within windows, or has a bias of positions, so that queries and keys cannot merge apart.
    """

    nothing = dict(preset='fast', share=0.0)
    every_stage = True

    def __init__(self, backbone: BackboneInfo, preset: Choice(*PRESETS) = 'hq', share: Maybe(OneOrMore(SHARE)) = None):
        super().__init__(backbone)
        if not backbone.merges_apart:
            raise UserError(
                'token_reduction.type=SegFormerPlusPlus merges queries and keys apart, which attention within windows '
                'or with a bias of positions cannot: choose another method.'
            )
        if share is not None and preset == '2x2':
            raise UserError(
                f"token_reduction.share={share!r} has no effect with preset='2x2', which averages whole cells: leave "
                "it out, or choose the preset 'hq' or 'fast'."
            )
        self.preset = preset
        depths = backbone.depths or (backbone.depth,)
        stages = [PRESETS[preset][2 if backbone.depths is None else min(k, 3)] for k in range(len(depths))]
        if share is None:
            share = tuple(each.share for ways in stages for each in ways if each)
        elif not isinstance(share, tuple):
            share = (share,) * len(depths)
        if len(share) != len(depths):
            raise UserError(
                f'token_reduction.share={share!r} has {len(share)} values for {len(depths)} stages: give one for each, '
                'or one number.'
            )
        #: Share of the tokens of each stage that merge; None where cells become their mean.
        self.share = share
        #: How queries merge in each layer, and how keys do.
        self.ways = [
            tuple(each and Cells(each.cell, own) for each in ways)
            for ways, own, blocks in zip(stages, share, depths)
            for _ in range(blocks)
        ]

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """Draw settings for a search, see ``TokenReducer``."""
        preset = trial.suggest_categorical('preset', tuple(PRESETS))
        return (
            dict(preset=preset)
            if preset == '2x2'
            else dict(preset=preset, share=trial.suggest_float('share', 0.1, 0.9, step=0.1))
        )

    def attention(self, i: int, attn: Any, x: Tensor, tokens: Tokens) -> Union[Tensor, tuple[Tensor, dict]]:
        """Run attention on merged queries, or merged keys and values."""
        queries, keys = self.ways[i]
        prefix, grid = tokens.num_prefix, tokens.form or tokens.grid
        asked = heard = None
        if attn.merges_apart:
            asked = queries and queries.matching(x[:, prefix:], grid)
            sources, grid = attn.sources(x, grid)
            heard = keys and keys.matching(sources[:, prefix:], grid)
        if asked is None and heard is None:
            return attn.branch(x)
        q = attn.queries(_merged(x, prefix, asked), asked and asked.kept)
        k, v = attn.keys_values(_merged(sources, prefix, heard), heard and heard.kept)
        out = (attn if heard is None else attn.merging(heard)).attend(q, k, v, kept=asked and asked.kept)
        if asked is None:
            return out
        return unmerge_patches(out, prefix, asked), dict(matching=asked)

    def after_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Forget the matching of the layer."""
        return tokens.forget('matching')

    def token_map(self, tokens: Tokens) -> Optional[tuple[Tensor, Tensor]]:
        """Map each patch to its group and representative, as queries merge."""
        return super().token_map(merged_as_noted(tokens, 'copy'))

    def token_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the queries of patches in each layer, all of ``grid``; a backbone of stages asks for each stage."""
        return [grid[0] * grid[1] if queries is None else queries.left(grid) for queries, _ in self.ways[:depth]]

    def ffn_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in the FFN of each layer: all."""
        return [grid[0] * grid[1]] * depth


def _merged(x, prefix, matching):
    return x if matching is None else merge_patches(x, prefix, matching)[0]
