"""The base class of parameter-efficient fine-tuning (PEFT), which adds trained parameters to a frozen backbone."""

from collections.abc import Sequence
from typing import Optional

from torch import Tensor, nn

from mmtr.declared import build_from_key
from mmtr.errors import UserError
from mmtr.reducers import BackboneInfo, BackbonePart, TokenReducer
from mmtr.registry import PEFTS
from mmtr.tokens import Tokens


class PEFT(BackbonePart):
    """Base class of fine-tuning methods: parameters that are trained while the backbone's own are frozen.

    Args:
        backbone: Layers and channels of the backbone.
    """

    setting_prefix = 'peft.'
    #: Whether every layer must have a token for every patch.
    needs_grid = False

    def attach(self, layers: Sequence[nn.Module]) -> None:
        """Attach to the layers of the backbone, such as with forward hooks; called once, when the backbone is built."""

    def add_branch(self, i: int, x: Tensor, tokens: Tokens) -> Tensor:
        """Add a branch parallel to the FFN to the output of a layer; here: nothing.

        Args:
            i: Index of the layer.
            x: (B, P + N, C) output of the layer.
            tokens: Input of the layer's second norm, the one before the FFN.

        Returns:
            (B, P + N, C).
        """
        return x

    def check_reducer(self, reducer: TokenReducer) -> None:
        """Raise a ``UserError`` if the method needs the whole grid and ``reducer`` removes tokens."""
        # The grid that the reducer works on: that of the image, or of a window.
        grid, depth = reducer.backbone.grid, reducer.backbone.depth
        if self.needs_grid and min(reducer.token_schedule(grid, depth)) < grid[0] * grid[1]:
            raise UserError(
                f'peft.type={type(self).__name__!r} looks at the whole grid of patches, of which token_reduction.type='
                f"{reducer.name!r} leaves a part: use peft=dict(type='Adapter') or 'LoRA', which work with every "
                "method, or, in a plain ViT, token_reduction=dict(type='DAR'), which keeps the grid."
            )

    def merged_state_dict(self, backbone: nn.Module) -> Optional[dict[str, Tensor]]:
        """Merge the trained parameters: return a state dict for the backbone with ``peft=None``; None: not possible."""
        return None


def build_peft(cfg: dict, backbone: BackboneInfo) -> PEFT:
    """Build the fine-tuning method of a backbone from the value of its key ``peft``.

    Args:
        cfg: ``dict(type=..., **settings)``.
        backbone: Layers and channels of the backbone.

    Raises:
        UserError: The type or one of its settings does not exist, or a setting has a value that is not allowed.
    """
    return build_from_key('peft', PEFTS, cfg, backbone=backbone)
