"""What a reducer or a PEFT must know of its backbone."""

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class BackboneInfo:
    """Layers, channels and prefix tokens of a backbone, for the reducer or PEFT that is built for it.

    Args:
        depth: Number of layers.
        embed_dims: Number of channels; where layers differ, that of the last output.
        num_prefix: Number of prefix tokens.
        grid: (H, W) of the patch grid of training images; None: not known. With ``in_windows``, that of a window.
        stage: Stage, counted from 1, whose blocks are the layers, in a backbone of stages; else None.
        in_windows: Whether the reducer runs within the windows of a Swin: the batch axis is then B * windows, and
            windows at the border may be smaller.
        multiple: What is left of the rows and of the columns of a grid must be a multiple of this, if fewer are left.
        first: The first layer before which tokens may be reduced.
        widths: Number of channels of each layer, where layers differ.
        depths: Number of layers in each stage, for a method that works in all of them; else None.
        merges_apart: Whether queries and keys may be of different tokens: not with windows or a bias of positions.
        output: What its outputs are made of: ``patches``, a token for every patch; ``mean``, that of the tokens that
            are left, weighted by size; ``class_token``, that alone.
    """

    depth: int
    embed_dims: int
    num_prefix: int
    grid: Optional[tuple[int, int]] = None
    stage: Optional[int] = None
    in_windows: bool = False
    multiple: int = 1
    first: int = 0
    widths: Optional[tuple[int, ...]] = None
    depths: Optional[tuple[int, ...]] = None
    merges_apart: bool = True
    output: str = 'patches'

    @property
    def needs_grid(self) -> bool:
        """Whether the tokens that are left must form a grid, for windows or convolutions."""
        return self.stage is not None

    def fitting(self, left: int, whole: int) -> int:
        """Round the ``left`` of ``whole`` rows or columns to a ``multiple``; all of them stay all."""
        if self.multiple == 1 or left == whole:
            return left
        return min(max(round(left / self.multiple), 1), whole // self.multiple) * self.multiple

    @property
    def layer_dims(self) -> tuple[int, ...]:
        """The number of channels of each layer."""
        return self.widths or (self.embed_dims,) * self.depth
