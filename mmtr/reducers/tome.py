"""ToMe: merge the most similar tokens, for good between attention and FFN, or only within each of them."""

from dataclasses import dataclass
from typing import Any, Callable, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from mmtr.errors import UserError
from mmtr.ops.bipartite import energy_matching, merge_patches, soft_matching, unmerge_patches
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import Choice, Flag, Maybe, Span
from mmtr.tokens import Tokens

from .base import BackboneInfo, TokenReducer
from .giving_back import RESTORE
from .multiples import MULTIPLE, shortened
from .noted_matching import merged_as_noted
from .residual_code import ResidualCode, restoration
from .tome_schedule import Merging, merged_in_each


@dataclass(frozen=True)
class Mode:
    """Base class of the two modes: which layers merge how many tokens.

    Args:
        layers: The span (a, b) of layers that merge.
        r: Number of tokens that merge in each layer of the span; below 1, a share of the sequence.
        proportional: Whether attention is proportional to the sizes of merged tokens (Eq. 1).
        prefix: Number of prefix tokens of the backbone.
        multiple_of: See ``ToMe``.
    """

    layers: tuple[int, int]
    r: list
    proportional: bool
    prefix: int
    multiple_of: int

    def count(self, i: int, n: int, whole: int) -> int:
        """Count the tokens of a sequence of ``n``, left of ``whole`` patches, that merge in layer ``i``."""
        start, stop = self.layers
        if not start <= i < stop:
            return 0
        r = self.r[i - start]
        r = int(r * n) if r < 1 else min(r, n // 2)
        now, whole = n + self.prefix, whole + self.prefix
        return now - shortened(now - r, now, whole, self.multiple_of, least=now - n // 2)

    def bias(self, size: Optional[Tensor], num_prefix: int) -> Optional[Tensor]:
        """Return the attention bias log(size): (B, N) -> (B, 1, 1, P + N)."""
        if size is None or not self.proportional:
            return None
        return F.pad(size.log(), (num_prefix, 0))[:, None, None]


class Sublayer(Mode):
    """Tokens merge before each attention and each FFN, by their own similarity, and unmerge after it."""

    def attention(self, i: int, attn: Any, x: Tensor, tokens: Tokens) -> Union[Tensor, tuple[Tensor, dict]]:
        """Run attention on merged tokens; the matching is noted for pictures."""
        matching = self._matching(i, x, tokens)
        if matching is None:
            return attn.branch(x)
        merged, size = merge_patches(x, tokens.num_prefix, matching)
        q, k, v = attn.qkv(merged, matching.kept)
        out = attn.merging(matching).attend(q, k, v, self.bias(size, tokens.num_prefix), matching.kept)
        return unmerge_patches(out, tokens.num_prefix, matching), dict(matching=matching)

    def between(self, tokens: Tokens, restoration: Union[str, ResidualCode]) -> Tokens:
        """Change nothing."""
        return tokens

    def ffn(self, i: int, ffn: Callable[[Tensor], Tensor], x: Tensor, tokens: Tokens) -> Tensor:
        """Run the FFN on merged tokens."""
        matching = self._matching(i, x, tokens)
        if matching is None:
            return ffn(x)
        return unmerge_patches(ffn(merge_patches(x, tokens.num_prefix, matching)[0]), tokens.num_prefix, matching)

    def token_schedule(self, n: int, depth: int) -> list[int]:
        """Count the patch tokens in each layer, of ``n`` patches."""
        return [n - self.count(i, n, n) for i in range(depth)]

    def ffn_schedule(self, n: int, depth: int) -> list[int]:
        """Count the patch tokens in the FFN of each layer: those of its attention."""
        return self.token_schedule(n, depth)

    def pictured(self, tokens: Tokens) -> Tokens:
        """Return the tokens as they merge for the layer's attention."""
        return merged_as_noted(tokens, 'copy')

    def _matching(self, i, x, tokens):
        patches = x[:, tokens.num_prefix :]
        n = int(patches.shape[1])
        count = self.count(i, n, n)
        return soft_matching(patches, count, tokens.num_prefix) if count else None


@dataclass(frozen=True)
class Progressive(Mode):
    """Tokens merge between attention and FFN, by the similarity of their keys, and stay merged (the paper).

    Args:
        depth: Number of layers, by which the margin of PiToMe's energy falls; None: the matching is ToMe's.
    """

    depth: Optional[int]

    def attention(self, i: int, attn: Any, x: Tensor, tokens: Tokens) -> Union[Tensor, tuple[Tensor, dict]]:
        """Run attention on the tokens that are left; note which of them merge after it."""
        q, k, v = attn.qkv(x)
        out = attn.attend(q, k, v, self.bias(tokens.size, tokens.num_prefix))
        count = self.count(i, int(x.shape[1]) - tokens.num_prefix, tokens.grid[0] * tokens.grid[1])
        if count == 0:
            return out
        keys = k[:, :, tokens.num_prefix :].detach().mean(1, dtype=torch.float32)
        if self.depth is None:
            return out, dict(matching=soft_matching(keys, count, tokens.num_prefix))
        return out, dict(matching=energy_matching(keys, count, 0.75 * (1 - i / self.depth)))

    def between(self, tokens: Tokens, restoration: Union[str, ResidualCode]) -> Tokens:
        """Merge tokens into their size-weighted mean."""
        return merged_as_noted(tokens, restoration).forget('matching')

    def ffn(self, i: int, ffn: Callable[[Tensor], Tensor], x: Tensor, tokens: Tokens) -> Tensor:
        """Run the FFN."""
        return ffn(x)

    def token_schedule(self, n: int, depth: int) -> list[int]:
        """Count the patch tokens in each layer, of ``n`` patches."""
        schedule, whole = [], n
        for i in range(depth):
            schedule.append(n)
            n -= self.count(i, n, whole)
        return schedule

    def ffn_schedule(self, n: int, depth: int) -> list[int]:
        """Count the patch tokens in the FFN of each layer, which follows the merging."""
        return self.token_schedule(n, depth + 1)[1:]

    def pictured(self, tokens: Tokens) -> Tokens:
        """Return the tokens as they are."""
        return tokens


@TOKEN_REDUCERS.register_module()
class ToMe(TokenReducer):
    """Token Merging (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, Sec. 3).

    The matching, and the order of the tokens that are left, are those of the released code.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        mode: ``sublayer``: the normalised tokens merge before each attention and each FFN, by their
            own similarity, and unmerge after it, as ToMe is used for segmentation. ``progressive``:
            tokens merge between attention and FFN, by the similarity of their keys, and stay merged (the paper).
        r: Number of tokens that merge in each layer; below 1, a share of the sequence (rounded down); never more
            than half. Or a list of these, one for each layer of the span; or a pair (tuple) (r, inflect), a straight
            line from r (1 - inflect) to r (1 + inflect); of a count, the first end is rounded down before the line
            is drawn, with the same mean. None: 0.3, or 8 if progressive.
        layers: The span (a, b) of layers that merge, counted from 0. None: all.
        matching: How a progressive merge finds its pairs: ``alternate``, between tokens in every second place;
            ``energy``, among the tokens that many others are similar to, so that rare ones are protected (Tran et al.,
            "Accelerating Transformers with Spectrum-Preserving Token Merging", PiToMe, NeurIPS 2024, Sec. 3).
        proportional_attention: Whether log(size) is added to the attention logits of merged tokens (Eq. 1). None:
            if progressive, but not with ``energy``, whose released code does not.
        restore: Value of a restored patch, if progressive: ``residual``, its own value plus the change of the token
            that it merged into; ``copy``, a copy of that token; ``learned``, see ``ResidualCode``. None: ``residual``.
            In ``sublayer`` mode, branches are unmerged before they are added, which is a change already.
        multiple_of: Shortened sequences, prefix tokens included, are shortened further to a multiple of this.

    Raises:
        UserError: A setting has a value that is not allowed, alone or with this backbone.
    """

    nothing = dict(r=0)

    def __init__(
        self,
        backbone: BackboneInfo,
        mode: Choice('sublayer', 'progressive') = 'sublayer',
        r: Maybe(Merging()) = None,
        layers: Maybe(Span()) = None,
        matching: Choice('alternate', 'energy') = 'alternate',
        proportional_attention: Maybe(Flag()) = None,
        restore: Maybe(RESTORE) = None,
        multiple_of: MULTIPLE = None,
    ):
        super().__init__(backbone)
        progressive = mode == 'progressive'
        if restore is not None and not progressive:
            raise UserError(
                f"token_reduction.restore={restore!r} is for mode='progressive': a sublayer adds what it "
                'unmerges to the tokens, so leave restore out.'
            )
        energy = matching == 'energy'
        if energy and not progressive:
            raise UserError(
                "token_reduction.matching='energy' is for mode='progressive': give that mode, or leave matching out."
            )
        layers = (0, backbone.depth) if layers is None else layers
        if r is None:
            r = 8 if progressive else 0.3
        proportional = progressive and not energy if proportional_attention is None else proportional_attention
        self.r = merged_in_each(r, layers[1] - layers[0])
        self.proportional, self.multiple_of = proportional, multiple_of or 1
        shared = layers, self.r, proportional, backbone.num_prefix, self.multiple_of
        energy_of = backbone.depth if energy else None
        self.restoration = restoration(restore or 'residual', backbone)
        self.mode = Progressive(*shared, energy_of) if progressive else Sublayer(*shared)

    @property
    def caution(self) -> str:
        """A warning for narrow backbones, in which matching costs what merging saves."""
        if self.backbone.embed_dims >= 384 or not any(self.r):
            return ''
        return (
            f'ToMe matches tokens in every layer, which costs a backbone of {self.backbone.embed_dims} channels '
            'about what it saves, or more: see tools/benchmark.py, or reduce once, as GridPool does.'
        )

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """Draw settings for a search, see ``TokenReducer``."""
        mode = trial.suggest_categorical('mode', ('sublayer', 'progressive'))
        most = 0.5 if mode == 'sublayer' else 0.2  # of each layer; progressive merging adds up
        return dict(
            mode=mode,
            r=trial.suggest_float(f'r of {mode}', 0.02, most, step=0.02),
            layers=(trial.suggest_int('start', 0, backbone.depth - 1), backbone.depth),
        )

    def attention(self, i: int, attn: Any, x: Tensor, tokens: Tokens) -> Union[Tensor, tuple[Tensor, dict]]:
        """Run attention, on merged tokens in ``sublayer`` mode; note the matching."""
        return self.mode.attention(i, attn, x, tokens)

    def between(self, i: int, tokens: Tokens) -> Tokens:
        """Merge tokens for good, if progressive."""
        return self.mode.between(tokens, self.restoration)

    def ffn(self, i: int, ffn: Callable[[Tensor], Tensor], x: Tensor, tokens: Tokens) -> Tensor:
        """Run the FFN, on merged tokens in ``sublayer`` mode."""
        return self.mode.ffn(i, ffn, x, tokens)

    def after_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Forget the matching of the layer."""
        return tokens.forget('matching')

    def token_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in each layer, see ``TokenReducer``."""
        return self.mode.token_schedule(grid[0] * grid[1], depth)

    def ffn_schedule(self, grid: tuple[int, int], depth: int) -> list[int]:
        """Count the patch tokens in the FFN of each layer; if progressive, it follows the merging."""
        return self.mode.ffn_schedule(grid[0] * grid[1], depth)

    def token_map(self, tokens: Tokens) -> Optional[tuple[Tensor, Tensor]]:
        """Map each patch to its group and representative; in ``sublayer`` mode as they merge for attention."""
        return super().token_map(self.mode.pictured(tokens))
