"""The contract of parameter-efficient fine-tuning: what is trained beside the frozen weights of a backbone."""

from collections.abc import Sequence
from typing import Optional

from torch import Tensor, nn

from mmtr.declared import build_from_key
from mmtr.errors import UserError
from mmtr.reducers import BackboneInfo, BackbonePart, TokenReducer
from mmtr.registry import PEFTS
from mmtr.tokens import Tokens


class PEFT(BackbonePart):
    """Some parameters that are trained while the backbone's own are frozen.

    Its parts start from their own ``init_weights``.

    Args:
        backbone: The backbone it is built for.
    """

    setting_prefix = 'peft.'
    #: Whether the patch tokens must be the whole grid in every layer.
    needs_grid = False

    def attach(self, layers: Sequence[nn.Module]) -> None:
        """Join the layers of the backbone, once, when it is built."""

    def add_branch(self, i: int, x: Tensor, tokens: Tokens) -> Tensor:
        """The output ``x`` (B, P + N, C) of layer ``i`` with what is trained beside its FFN.

        Args:
            tokens: What the FFN's norm was given, in training and evaluation.
        """
        return x

    def check_reducer(self, reducer: TokenReducer) -> None:
        """Raise a ``UserError`` if this cannot work with ``reducer``."""
        # The reducer knows of which grid it leaves a part: the image's, or that of a window.
        grid, depth = reducer.backbone.grid, reducer.backbone.depth
        if self.needs_grid and min(reducer.token_schedule(grid, depth)) < grid[0] * grid[1]:
            raise UserError(
                f'peft.type={type(self).__name__!r} looks at the whole grid of patches, of which token_reduction.type='
                f"{reducer.name!r} leaves a part: use peft=dict(type='Adapter') or 'LoRA', which work with every "
                "method, or, in a plain ViT, token_reduction=dict(type='DAR'), which keeps the grid."
            )

    def merged_state_dict(self, backbone: nn.Module) -> Optional[dict[str, Tensor]]:
        """The state dict of the same backbone with ``peft=None``; None: it has no such form."""
        return None


def build_peft(cfg: dict, backbone: BackboneInfo) -> PEFT:
    """Build from the value of a backbone's key ``peft``.

    Raises:
        UserError: The type or one of its settings does not exist, or a setting cannot work.
    """
    return build_from_key('peft', PEFTS, cfg, backbone=backbone)
