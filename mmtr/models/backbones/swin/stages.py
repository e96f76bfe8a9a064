"""What Swin and Swin V2 share as backbones: a reducer within the windows of one stage."""

from dataclasses import replace
from typing import Optional

from torch import nn

from mmtr.models.backbones.common.stages import StagedBackbone
from mmtr.reducers import BackboneInfo, TokenReducer
from mmtr.reducers.windowed import Windowed


class SwinStages(StagedBackbone):
    """Mixin for a Swin, which has ``stages`` of ``blocks`` whose ``attn.w_msa`` has a ``window_size``."""

    @property
    def blocks(self) -> list[nn.ModuleList]:
        """The blocks of each stage."""
        return [stage.blocks for stage in self.stages]

    @property
    def trained_parts(self) -> tuple[str, ...]:
        """Names of the children that a ``peft`` trains; with the output norms, which weights of a classifier lack."""
        return (*StagedBackbone.trained_parts, *(f'norm{i}' for i in self.out_indices))

    def stage_info(self, stage: int) -> BackboneInfo:
        """Return what the reducer of a stage, counted from 1, must know: it runs within windows."""
        return replace(
            super().stage_info(stage), grid=tuple(self.blocks[stage - 1][0].attn.w_msa.window_size), in_windows=True
        )

    def build_reducer(self, token_reduction: Optional[dict]) -> TokenReducer:
        """Build a reducer for one stage from the value of the key ``token_reduction``."""
        reducer = super().build_reducer(token_reduction)
        return reducer if token_reduction is None else Windowed(reducer)

    def width(self, block: nn.Module) -> int:
        """The number of channels of a block."""
        return block.attn.w_msa.embed_dims
