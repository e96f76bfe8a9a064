"""What takes a reduction of tokens back: which token stands for each one that there was, and what it gives it."""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor

from mmtr.ops.dropping import nearest_kept
from mmtr.ops.matching import gather_tokens
from mmtr.ops.rows_columns import Assignment, eject


class Undo:
    """The way back from M tokens to the N that they were made of. Immutable, as ``Tokens``."""

    @property
    def parts(self) -> tuple['Undo', ...]:
        """The steps that it consists of, in the order in which the tokens were reduced."""
        return (self,)

    def expand(self, x: Tensor) -> Tensor:
        """Give each token a value again: (B, M, C) of the tokens after the reduction -> (B, N, C)."""
        raise NotImplementedError

    def trace(self, index: Tensor) -> Tensor:
        """Which patch stands for each: positions (B, M) of the tokens after the reduction -> (B, N)."""
        raise NotImplementedError

    def then(self, step: 'Undo') -> 'Undo':
        """The way back where ``step`` is that of a further reduction."""
        return Chain((*self.parts, step))


@dataclass(frozen=True)
class Chain(Undo):
    """Several reductions; the last one is taken back first."""

    steps: tuple[Undo, ...]

    @property
    def parts(self):
        """See ``Undo``."""
        return self.steps

    def expand(self, x):
        """See ``Undo``."""
        for step in reversed(self.steps):
            x = step.expand(x)
        return x

    def trace(self, index):
        """See ``Undo``."""
        for step in reversed(self.steps):
            index = step.trace(index)
        return index


@dataclass(frozen=True)
class Merged(Undo):
    """Each token gets a copy of the one that stands for it.

    Args:
        slots: (B, N) which of the M tokens that is.
    """

    slots: Tensor

    def expand(self, x):
        """See ``Undo``."""
        return gather_tokens(x, self.slots)

    def trace(self, index):
        """See ``Undo``."""
        return index.gather(1, self.slots)

    def then(self, step):
        """See ``Undo``; two copies are one."""
        return Merged(step.slots.gather(1, self.slots)) if isinstance(step, Merged) else super().then(step)


@dataclass(frozen=True)
class Assigned(Undo):
    """Each token gets what its ``Assignment`` says, one token or shares of several.

    Args:
        assignment: Of the N tokens to the M.
    """

    assignment: Assignment

    def expand(self, x):
        """See ``Undo``."""
        return eject(x, self.assignment)

    def trace(self, index):
        """See ``Undo``; the token with the largest share."""
        return index.gather(1, self.assignment.slots())


@dataclass(frozen=True)
class Dropped(Undo):
    """Tokens that stayed get themselves; those that left, a value of their own, or a change of one that stayed.

    Args:
        order: (B, N) slot, among those that stayed followed by those that left, of each token that there was.
        own: (B, G, C) what those that left have of their own.
        places: (B, G) raster positions of those that left.
        anchors: (B, G) slot, among those that stayed, of the token whose value is added to ``own``; None: none is.
    """

    order: Tensor
    own: Tensor
    places: Tensor
    anchors: Optional[Tensor] = None

    def _stayed(self):
        # Behind these is what the others were fused into, if they were.
        return self.order.shape[1] - self.own.shape[1]

    def expand(self, x):
        """See ``Undo``."""
        back = self.own if self.anchors is None else self.own + gather_tokens(x, self.anchors)
        return gather_tokens(torch.cat([x[:, : self._stayed()], back], 1), self.order)

    def trace(self, index):
        """See ``Undo``; what has a value of its own alone stands for itself."""
        back = self.places if self.anchors is None else index.gather(1, self.anchors)
        return torch.cat([index[:, : self._stayed()], back], 1).gather(1, self.order)


@dataclass(frozen=True)
class Forgotten(Undo):
    """Nothing is given back; for pictures the nearest token that is left stands for each patch.

    Args:
        index: (B, M) raster positions of what is left.
        grid: (H, W) of the patches.
    """

    index: Tensor
    grid: tuple[int, int]

    def trace(self, index):
        """See ``Undo``."""
        return index.gather(1, nearest_kept(self.index, self.grid))


@dataclass(frozen=True)
class Change(Undo):
    """Each token gets its own value, and the change since the reduction of what ``way`` gives it.

    Args:
        way: How changes are given back.
        residual: (B, N, C) value of each token less what ``way`` gave it when the tokens were reduced.
    """

    way: Undo
    residual: Tensor

    @property
    def parts(self):
        """Those of ``way``."""
        return self.way.parts

    def expand(self, x):
        """See ``Undo``."""
        return self.way.expand(x) + self.residual

    def trace(self, index):
        """See ``Undo``."""
        return self.way.trace(index)


def way_back(undo: Optional[Undo], step: Undo, before: Tensor, after: Tensor, change: bool) -> Undo:
    """What takes back ``step``, and before it what ``undo`` does; however many steps, there is one ``Change``.

    Args:
        undo: Of the tokens ``before``; None: they are those of all patches.
        step: Of the reduction.
        before, after: (B, N, C) and (B, M, C), the tokens that were reduced and what they became.
        change: Whether patches get changes, or copies.
    """
    way = undo.way if isinstance(undo, Change) else undo
    way = step if way is None else way.then(step)
    if not change:
        return way
    whole = before if undo is None else undo.expand(before)
    return Change(way, whole - way.expand(after))
