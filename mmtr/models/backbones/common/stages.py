"""What backbones of stages share: a reducer in one of the stages."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Optional

from torch import nn

from mmtr.errors import UserError
from mmtr.reducers import BackboneInfo, TokenReducer, build_token_reducer
from mmtr.reducers.base import NOTHING
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import Whole

from .backbone import TunableBackbone


class StagedBackbone(TunableBackbone):
    """Mixin for a backbone of stages, in one of which a reducer works; tokens are restored before the next stage.

    The key ``token_reduction`` has one setting more, ``stage``, counted from 1; None: the stage with most blocks. The
    layers of the reducer are the blocks of that stage, counted from 0; those of ``peft`` the blocks of all stages. A
    subclass implements ``blocks``, ``width`` and ``stage_grids``, and has ``out_indices``.
    """

    #: Whether queries and keys may be of different tokens, see ``BackboneInfo``.
    merges_apart = False

    @property
    def blocks(self) -> Sequence[Sequence[nn.Module]]:
        """The blocks of each stage."""
        raise NotImplementedError

    def width(self, block: nn.Module) -> int:
        """The number of channels of a block."""
        raise NotImplementedError

    def stage_grids(self, shape: tuple[int, int]) -> list[tuple[int, int]]:
        """Return the (rows, columns) of tokens in each stage for an image of ``shape`` (height, width) in pixels."""
        raise NotImplementedError

    @property
    def all_layers(self) -> list[nn.Module]:
        """The blocks of all stages, in the order that ``peft`` counts them in."""
        return [block for blocks in self.blocks for block in blocks]

    @property
    def shape(self) -> BackboneInfo:
        """Blocks and channels of all stages, for the PEFT; a reducer gets those of one stage."""
        widths = tuple(map(self.width, self.all_layers))
        last = self.blocks[max(self.out_indices)][-1]
        return BackboneInfo(depth=len(widths), embed_dims=self.width(last), num_prefix=0, widths=widths)

    def stage_info(self, stage: int) -> BackboneInfo:
        """Return what the reducer of a stage, counted from 1, must know."""
        blocks = self.blocks[stage - 1]
        return BackboneInfo(
            depth=len(blocks),
            embed_dims=self.width(blocks[0]),
            num_prefix=0,
            stage=stage,
            merges_apart=self.merges_apart,
        )

    def build_reducer(self, token_reduction: Optional[dict]) -> TokenReducer:
        """Build a reducer for one stage from the value of the key ``token_reduction``."""
        settings, stage = token_reduction, None
        if isinstance(token_reduction, dict):
            settings = dict(token_reduction)
            stage = settings.pop('stage', None)
        depths = tuple(len(blocks) for blocks in self.blocks)
        if self._every_stage(settings):
            if stage is not None:
                raise UserError(
                    f'token_reduction.stage={stage!r} has no effect: the method works in all; leave it out.'
                )
            return build_token_reducer(settings, replace(self.shape, depths=depths, merges_apart=self.merges_apart))
        if stage is None:
            stage = depths.index(max(depths)) + 1
        stage = Whole(1, len(depths)).check('token_reduction.stage', stage)
        return build_token_reducer(settings, self.stage_info(stage))

    @staticmethod
    def _every_stage(settings):
        kind = settings.get('type') if isinstance(settings, dict) else None
        return getattr(TOKEN_REDUCERS.get(kind) if isinstance(kind, str) else kind, 'every_stage', False)

    def reducer_of(self, i: int) -> tuple[TokenReducer, int]:
        """Return the reducer that works in stage ``i``, counted from 0, and its index of the first block there."""
        backbone = self.token_reducer.backbone
        if backbone.depths is not None:
            return self.token_reducer, sum(backbone.depths[:i])
        return self.token_reducer if backbone.stage == i + 1 else NOTHING, 0

    def token_schedule(self, shape: tuple[int, int]) -> list[int]:
        """Count the tokens, without padding, in each block for an image of ``shape`` (height, width) in pixels."""
        schedule = []
        for i, (grid, blocks) in enumerate(zip(self.stage_grids(shape), self.blocks)):
            reducer, first = self.reducer_of(i)
            schedule += reducer.token_schedule(grid, first + len(blocks))[first:]
        return schedule
