"""Token Adapter: rows and columns of tokens are merged before a span of layers, and restored after it."""

from dataclasses import dataclass
from typing import Any, Optional, Union

import torch
from torch import Tensor

from mmtr.errors import UserError
from mmtr.ops.attention import received_attention
from mmtr.ops.dropping import nearest_kept
from mmtr.ops.matching import METRICS
from mmtr.ops.rows_columns import (
    MERGES,
    REFERENCES,
    SCORES,
    Assignment,
    Groups,
    assign,
    eject,
    group_rows_columns,
    inject,
    match_normal,
    row_column_scores,
)
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import COSINE, SEED, SHARE, Choice, Maybe, Number, Pair, Span, Whole
from mmtr.tokens import NOTHING, Tokens
from mmtr.undo import Undo

from .base import BackboneInfo, TokenReducer, default_span
from .multiples import MULTIPLE, shortened_grid
from .residual_code import restoration


@dataclass(frozen=True)
class Injected(Undo):
    """A reduction by the Token Injector, which the Token Ejector undoes.

    Args:
        groups: Groups of the tokens before the reduction.
        assignment: Assignment of the original tokens to the reduced ones; None: tokens are not restored.
        match: (B, N_n) index in ``groups.kept`` of the token that each normal one was merged into; None: normal tokens
            were not matched.
    """

    groups: Groups
    assignment: Optional[Assignment]
    match: Optional[Tensor]

    def expand(self, x: Tensor) -> Tensor:
        """Map values of the tokens after the reduction to those before it, see ``Undo``."""
        return eject(x, self.assignment)

    def trace(self, index: Tensor) -> Tensor:
        """Map each token to its representative: by ``match``, or the token that restores it, or else the nearest."""
        if self.match is not None:
            slots = self.groups.slots(self.match)
        elif self.assignment is not None:
            slots = self.assignment.slots()
        else:
            slots = nearest_kept(self.groups.kept, self.groups.grid)
        return index.gather(1, slots)


@TOKEN_REDUCERS.register_module()
class TokenAdapter(TokenReducer):
    """Token Adapter (Su et al., "Removing Rows and Columns of Tokens in Vision Transformer", Sec. 3.2).

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        ratio: Share of rows and of columns that are normal, r_h and r_w, which are merged; one number for both.
        unique: Share of rows and of columns that are unique, u_h and u_w: they are kept, and nothing merges into them.
        layers: Span (a, b), counted from 0: tokens are reduced before layer a (injector) and restored after layer
            b - 1 (ejector), so that a layers see every token. None: from 10/24 of the depth to its end.
        per_layer: Number of rows and of columns that are merged before each layer of the span but the first, in place
            of ``ratio``, as long as a representative remains (the dagger of Tab. 3).
        score: Importance of rows and columns (Tab. 4a): ``max | sum | range | attn | random | alternating``, the last
            evenly spaced. The paper's is ``max``.
        metric: Similarity of tokens (Tab. 4b): ``cosine | dot | euclidean | manhattan``.
        merge: How tokens are merged (Tab. 4d): ``average | keep | max_pool | avg_pool | bilinear``.
        reference: Tokens that the original ones are matched with (Tab. 4c): ``reduced_merged | reduced |
            representative_merged | representative``.
        mode: Matches that a restored token is the mean of (Tab. 4e): ``max``, the best one; ``threshold``, that and
            all whose similarity is at least ``tau``.
        tau: Threshold of ``mode='threshold'``, in the units of ``metric`` (distances negated).
        restore: Value of a restored patch: ``residual``, its own value plus the change of the reduced tokens that it
            is matched with; ``copy``, the mean of these, as in the paper; ``learned``, see ``ResidualCode``; ``none``:
            the smaller grid is not restored, for a head that takes any size.
        seed: Seed of ``score='random'``.
        multiple_of: What is left, with prefix tokens, is reduced further to a multiple of this, by rows and columns.

    Raises:
        UserError: A setting has a value that is not allowed, alone, with another one or with this backbone.
    """

    nothing = dict(ratio=0.0)
    leaves_grid = True

    def __init__(
        self,
        backbone: BackboneInfo,
        ratio: Maybe(Pair(SHARE)) = None,
        unique: Pair(SHARE) = 0.0,
        layers: Maybe(Span()) = None,
        per_layer: Maybe(Pair(Whole(0, 1024))) = None,
        score: Choice(*SCORES) = 'alternating',
        metric: Choice(*METRICS) = 'cosine',
        merge: Choice(*MERGES) = 'average',
        reference: Choice(*REFERENCES) = 'reduced_merged',
        mode: Choice('max', 'threshold') = 'max',
        tau: Number(least=-1e6) = 0.995,
        restore: Choice('copy', 'residual', 'learned', 'none') = 'residual',
        seed: SEED = 0,
        multiple_of: MULTIPLE = None,
    ):
        super().__init__(backbone)
        if backbone.needs_grid and score == 'attn':
            raise UserError(
                "token_reduction.score='attn' needs attention from all tokens to all, which a backbone of stages has "
                f'not: choose one of {", ".join(s for s in SCORES if s != "attn")}.'
            )
        if backbone.needs_grid and restore == 'none':
            raise UserError(
                "token_reduction.restore='none' cannot work in a backbone of stages, since the next stage needs "
                'every token: choose copy or residual.'
            )
        self.layers, self.unique, self.per_layer = default_span(layers, backbone.depth), unique, per_layer
        if ratio is not None and per_layer is not None:
            raise UserError(
                f'token_reduction.ratio={ratio!r} and per_layer={per_layer!r} exclude each other: give one of them.'
            )
        if per_layer is not None and any(k % backbone.multiple for k in per_layer):
            raise UserError(
                f'token_reduction.per_layer={per_layer!r} does not fit stage {backbone.stage}, which needs a grid in '
                f'multiples of {backbone.multiple}: give such multiples.'
            )
        self.ratio = (0.3, 0.3) if ratio is None else ratio
        if per_layer is None:
            self._check_shares()
        else:
            self.nothing = dict(per_layer=0)
        if metric == 'cosine':
            COSINE.check('token_reduction.tau', tau)
        if score == 'attn' and self.layers[0] == 0:
            raise UserError(
                f"token_reduction.score='attn' uses the attention of the layer before the span, and "
                f'layers={self.layers} has none: start at layer 1 or later.'
            )
        self.score, self.metric, self.merge, self.reference = score, metric, merge, reference
        self.tau = tau if mode == 'threshold' else None
        self.restores, self.restoration = restore != 'none', restoration(restore, backbone)
        self.seed, self.multiple_of = seed, multiple_of or 1

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """Draw settings for a search, see ``TokenReducer``."""
        return dict(
            ratio=trial.suggest_float('ratio', 0.05, 0.6, step=0.05),
            layers=(trial.suggest_int('start', backbone.first, backbone.depth - 1), backbone.depth),
            score=trial.suggest_categorical('score', ('max', 'alternating')),
            metric=trial.suggest_categorical('metric', ('cosine', 'euclidean')),
        )

    def _check_shares(self):
        for axis, ratio, unique in zip(('rows', 'columns'), self.ratio, self.unique):
            if ratio + unique >= 1:
                raise UserError(
                    f'token_reduction.ratio={ratio:g} and unique={unique:g} leave no representative '
                    f'{axis}: their sum must be below 1.'
                )

    def _counts(self, grid: tuple[int, int], whole: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Count the rows and columns of ``grid``, left of ``whole``, that are normal, and those that are unique."""
        normal, unique = self._counts_set(grid)
        left = tuple(n - k for n, k in zip(grid, normal))
        least = tuple(u + 1 for u in unique)
        left = shortened_grid(left, grid, whole, self.backbone.num_prefix, self.multiple_of, least)
        return tuple(n - few for n, few in zip(grid, left)), unique

    def _counts_set(self, grid):
        """Count them as the settings say, before any ``multiple_of``."""
        unique = tuple(min(round(share * n), n - 1) for share, n in zip(self.unique, grid))
        if self.per_layer is not None:
            normal = self._fitting(self.per_layer, grid)
            return tuple(k if n - u - k >= 1 else 0 for k, u, n in zip(normal, unique, grid)), unique
        normal = self._fitting((round(share * n) for share, n in zip(self.ratio, grid)), grid)
        if self.backbone.in_windows:
            # A smaller window at the border loses as many rows and columns as it can.
            normal = tuple(
                min(k, n - u - 1) if n < whole else k
                for k, u, n, whole in zip(normal, unique, grid, self.backbone.grid)
            )
        for axis, n, k, u, ratio in zip(('rows', 'columns'), grid, normal, unique, self.ratio):
            if k > 0 and n - k - u < 1:
                raise UserError(
                    f'token_reduction.ratio={ratio:g} takes {k} of {n} {axis} of the {grid[0]}x{grid[1]} patch grid '
                    f'with {u} unique ones, and no representative remains: the largest ratio that fits is '
                    f'{max(n - u - 1, 0) / n:.3g}.'
                )
        return normal, unique

    def _fitting(self, normal, grid):
        return tuple(n - self.backbone.fitting(n - k, n) for k, n in zip(normal, grid))

    def _injects(self, i: int) -> bool:
        start, stop = self.layers
        return start < i < stop if self.per_layer is not None else i == start < stop

    @staticmethod
    def _grid(tokens: Tokens) -> tuple[int, int]:
        return tokens.grid if tokens.undo is None else tokens.undo.parts[-1].groups.reduced_grid

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Reduce the tokens before layer ``i``: the Token Injector."""
        if not self._injects(i):
            return tokens
        grid = self._grid(tokens)
        normal, unique = self._counts(grid, tokens.grid)
        if normal == (0, 0):
            return tokens
        x = tokens.patches
        scores = row_column_scores(x.unflatten(1, grid), self.score, normal, tokens.memo.get('received'), self.seed)
        groups = group_rows_columns(scores, normal, unique)
        match = match_normal(x, groups, self.metric) if self.merge == 'average' else None
        merged, count = inject(x, groups, self.merge, match)
        back = self.restores and tokens.gives_back
        assignment = assign(x, merged, groups, self.metric, self.reference, self.tau) if back else None
        index = tokens.positions.gather(1, groups.kept)
        return tokens.reduced(merged, Injected(groups, assignment, match), index, count, self.restoration)

    def attention(self, i: int, attn: Any, x: Tensor, tokens: Tokens) -> Union[Tensor, tuple[Tensor, dict]]:
        """Run the attention of the layer; with ``score='attn'``, note the received attention for the next injection."""
        if self.score != 'attn' or not self._injects(i + 1):
            return attn.branch(x)
        q, k, v = attn.qkv(x)
        with torch.no_grad():
            received = received_attention(*attn.positioned(q, k))[:, tokens.num_prefix :]
        return attn.attend(q, k, v), dict(received=received.unflatten(1, self._grid(tokens)))

    def after_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Restore all tokens after the last layer of the span: the Token Ejector."""
        return tokens.restored() if self.restores and i == self.layers[1] - 1 else tokens

    def restore(self, tokens: Tokens) -> Tokens:
        """Restore a token for every patch, see ``TokenReducer``; with ``restore='none'``, return the reduced grid."""
        if self.restores or tokens.undo is None:
            return tokens.restored()
        return tokens.replace(grid=self._grid(tokens), undo=None, memo=NOTHING)

    def grid_schedule(self, grid: tuple[int, int], depth: int) -> list[tuple[int, int]]:
        """Return the token grid in each layer; raise a ``UserError`` if the grid is too small for the ratio."""
        schedule, current = [], grid
        for i in range(depth):
            if self._injects(i):
                current = tuple(n - k for n, k in zip(current, self._counts(current, grid)[0]))
            schedule.append(current)
            if self.restores and i == self.layers[1] - 1:
                current = grid
        return schedule

    def token_map(self, tokens: Tokens) -> Optional[tuple[Tensor, Tensor]]:
        """Map each patch to its group and its representative; the groups are those of the last injection."""
        found = super().token_map(tokens)
        if found is None:
            return None
        group, stands_for = found
        groups = tokens.undo.parts[-1].groups
        return group.scatter(1, tokens.index, groups.labels().gather(1, groups.kept)), stands_for
