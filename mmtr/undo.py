"""Undo steps: how the tokens from before a reduction get values again from the tokens after it."""

import dataclasses
from dataclasses import dataclass
from typing import Callable, Optional

import torch
from torch import Tensor

from mmtr.ops.dropping import nearest_kept
from mmtr.ops.matching import gather_tokens
from mmtr.ops.rows_columns import Assignment, eject


class Undo:
    """The undo step of a reduction of N tokens to M: it maps values of the M tokens to the N. Immutable."""

    #: Whether each of the M tokens stands for all those that ``trace`` to it; otherwise for the one in its place alone.
    merges = True

    @property
    def parts(self) -> tuple['Undo', ...]:
        """The single steps, in the order of the reductions."""
        return (self,)

    def expand(self, x: Tensor) -> Tensor:
        """Map values of the tokens after the reduction to those before it: (B, M, C) -> (B, N, C)."""
        raise NotImplementedError

    def trace(self, index: Tensor) -> Tensor:
        """Map each token before the reduction to the raster position of its representative: (B, M) -> (B, N)."""
        raise NotImplementedError

    def then(self, step: 'Undo') -> 'Undo':
        """Append ``step``, the undo step of a further reduction."""
        return Chain((*self.parts, step))


@dataclass(frozen=True)
class Chain(Undo):
    """Several reductions in a row; the last one is undone first.

    Args:
        steps: One undo step a reduction, the first reduction first.
    """

    steps: tuple[Undo, ...]

    @property
    def merges(self) -> bool:
        """Whether all reductions merge, see ``Undo``."""
        return all(step.merges for step in self.steps)

    @property
    def parts(self) -> tuple[Undo, ...]:
        """The single steps, see ``Undo``."""
        return self.steps

    def expand(self, x: Tensor) -> Tensor:
        """Map values of the tokens after the reduction to those before it, see ``Undo``."""
        for step in reversed(self.steps):
            x = step.expand(x)
        return x

    def trace(self, index: Tensor) -> Tensor:
        """Map each token before the reduction to its representative, see ``Undo``."""
        for step in reversed(self.steps):
            index = step.trace(index)
        return index


@dataclass(frozen=True)
class Merged(Undo):
    """Merging: each token gets a copy of the token that it was merged into.

    Args:
        slots: (B, N) index, 0 to M - 1, of that token.
    """

    slots: Tensor

    def expand(self, x: Tensor) -> Tensor:
        """Map values of the tokens after the reduction to those before it, see ``Undo``."""
        return gather_tokens(x, self.slots)

    def trace(self, index: Tensor) -> Tensor:
        """Map each token before the reduction to its representative, see ``Undo``."""
        return index.gather(1, self.slots)

    def then(self, step: Undo) -> Undo:
        """Append ``step``; a merge after a merge is one merge."""
        one = type(self) is type(step) is Merged
        return Merged(step.slots.gather(1, self.slots)) if one else super().then(step)


@dataclass(frozen=True)
class Nearest(Merged):
    """Dropping, after which each patch gets a copy of the kept token nearest on the patch grid.

    Args:
        slots: See ``Merged``; of all patches.
    """

    merges = False


@dataclass(frozen=True)
class Assigned(Undo):
    """Assignment: each token gets a copy of one reduced token, or a weighted sum of several.

    Args:
        assignment: Assignment of the N tokens to the M reduced ones.
    """

    assignment: Assignment

    def expand(self, x: Tensor) -> Tensor:
        """Map values of the tokens after the reduction to those before it, see ``Undo``."""
        return eject(x, self.assignment)

    def trace(self, index: Tensor) -> Tensor:
        """Map each token before the reduction to its representative, the reduced token with the largest weight."""
        return index.gather(1, self.assignment.slots())


@dataclass(frozen=True)
class Dropped(Undo):
    """Dropping: kept tokens get their own value, dropped ones ``own``, plus the value of a kept token if given.

    Args:
        order: (B, N) index of each token in the sequence of kept tokens followed by the G dropped ones.
        own: (B, G, C) values of the dropped tokens.
        places: (B, G) raster positions of the dropped tokens.
        anchors: (B, G) index of the kept token whose value is added to ``own``; None: nothing is added.
    """

    order: Tensor
    own: Tensor
    places: Tensor
    anchors: Optional[Tensor] = None
    merges = False

    def _stayed(self):
        # A fused token, if there is one, comes after the kept tokens.
        return self.order.shape[1] - self.own.shape[1]

    def expand(self, x: Tensor) -> Tensor:
        """Map values of the tokens after the reduction to those before it, see ``Undo``."""
        back = self.own if self.anchors is None else self.own + gather_tokens(x, self.anchors)
        return gather_tokens(torch.cat([x[:, : self._stayed()], back], 1), self.order)

    def trace(self, index: Tensor) -> Tensor:
        """Map each token to its representative; a dropped token without an anchor represents itself."""
        back = self.places if self.anchors is None else index.gather(1, self.anchors)
        return torch.cat([index[:, : self._stayed()], back], 1).gather(1, self.order)


@dataclass(frozen=True)
class Forgotten(Undo):
    """Undo step of tokens that are never restored; for pictures, the nearest one that is left represents each patch.

    Args:
        index: (B, M) raster positions of the tokens that are left.
        grid: (H, W) of the patch grid.
    """

    index: Tensor
    grid: tuple[int, int]

    def trace(self, index: Tensor) -> Tensor:
        """Map each patch to the nearest token that is left."""
        return index.gather(1, nearest_kept(self.index, self.grid))


@dataclass(frozen=True)
class Change(Undo):
    """Residual restoring: each token gets its old value plus the change that ``way`` maps to it.

    Args:
        way: Undo steps that map values of the reduced tokens to all tokens.
        residual: (B, N, C) old value of each token minus what ``way`` mapped to it right after the reduction.
        code: What is added to each token: a function of ``residual`` and of what ``way`` maps to it. None: nothing.
    """

    way: Undo
    residual: Tensor
    code: Optional[Callable[[Tensor, Tensor], Tensor]] = None

    @property
    def merges(self) -> bool:
        """Whether all reductions merge, see ``Undo``."""
        return self.way.merges

    @property
    def parts(self) -> tuple[Undo, ...]:
        """The single steps of ``way``."""
        return self.way.parts

    def expand(self, x: Tensor) -> Tensor:
        """Map values of the tokens after the reduction to those before it, see ``Undo``."""
        changed = self.way.expand(x)
        whole = changed + self.residual
        return whole if self.code is None else whole + self.code(self.residual, changed)

    def trace(self, index: Tensor) -> Tensor:
        """Map each token before the reduction to its representative, see ``Undo``."""
        return self.way.trace(index)


def way_back(
    undo: Optional[Undo],
    step: Undo,
    before: Tensor,
    after: Tensor,
    change: bool,
    code: Optional[Callable[[Tensor, Tensor], Tensor]] = None,
) -> Undo:
    """Combine the undo steps so far with that of a further reduction; the result holds at most one ``Change``.

    Args:
        undo: Undo steps of the tokens ``before``; None: they were not reduced yet.
        step: Undo step of the further reduction.
        before: (B, N, C) patch tokens before it.
        after: (B, M, C) patch tokens after it.
        change: Whether patches keep their value and get the change of their representative (residual), or a copy.
        code: See ``Change``.
    """
    way = undo.way if isinstance(undo, Change) else undo
    way = step if way is None else way.then(step)
    if not change:
        return way
    if isinstance(undo, Change):  # a code is added at the end alone
        undo = dataclasses.replace(undo, code=None)
    whole = before if undo is None else undo.expand(before)
    return Change(way, whole - way.expand(after), code)
