"""Measure what a layer of a plain ViT takes by the number of its tokens, and what the methods themselves take."""

import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable, Optional

import torch
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.plain import ReducibleBackbone
from mmtr.reducers import BackboneInfo, TokenReducer
from mmtr.reducers.observer import reducer_of
from mmtr.registry import TOKEN_REDUCERS
from mmtr.tokens import Tokens

from .prediction import Sweep, events, fit, identity, variant
from .speed import interleave, machine

#: Number of points of the curve that are evenly spaced, and of measured settings of each variant of a method.
POINTS, SETTINGS = 16, 4
DRAWS = 100


class Cut(TokenReducer):
    """Reduces tokens at no cost: keeps some from the first layer on, and returns the embedded ones at the end.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        count: Number of patch tokens that are kept, evenly spaced; None: all, not reduced.
        with_ffn: Whether layers compute their FFN.
    """

    def __init__(self, backbone: BackboneInfo, count: Optional[int], with_ffn: bool):
        super().__init__(backbone)
        self.count, self.with_ffn = count, with_ffn

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Keep ``count`` tokens before the first layer."""
        if i > 0 or self.count is None:
            return tokens
        whole = tokens.patches.shape[1]
        index = torch.linspace(0, whole - 1, self.count, device=tokens.x.device).round().long()
        x = torch.cat([tokens.prefix, tokens.patches[:, index]], 1)
        return tokens.replace(x=x, index=index.expand(len(x), -1)).remember(whole=tokens)

    def ffn(self, i: int, ffn: Callable[[Tensor], Tensor], x: Tensor, tokens: Tokens) -> Tensor:
        """Run the FFN, or return its input."""
        return ffn(x) if self.with_ffn else x

    def restore(self, tokens: Tokens) -> Tokens:
        """Return the embedded tokens."""
        return tokens if self.count is None else tokens.memo['whole']


class _Nothing(nn.Module):
    """A layer that does nothing."""

    def forward(self, x, step):
        return x


def idle_layers(backbone: nn.Module) -> nn.ModuleList:
    """Build as many layers as ``backbone`` has, which do nothing."""
    return nn.ModuleList(_Nothing() for _ in backbone.layers)


@contextmanager
def layers_of(backbone: nn.Module, layers: nn.ModuleList) -> Iterator[None]:
    """Run ``backbone`` with ``layers`` in place of its own, inside this context."""
    kept = backbone.layers
    backbone.layers = layers
    try:
        yield
    finally:
        backbone.layers = kept


def check_plain(backbone: nn.Module) -> None:
    """Raise a ``UserError`` unless all layers of ``backbone`` are alike and attend to all tokens."""
    name = type(backbone).__name__
    if not isinstance(backbone, ReducibleBackbone):
        raise UserError(f'--sweep measures plain ViTs, whose layers are alike, and {name} has stages: give a ViT.')
    if any(getattr(layer.attn, 'window', None) for layer in backbone.layers):
        raise UserError(f'--sweep measures layers that attend to all tokens, and {name} has windows: leave them out.')
    if backbone.query_layers:
        raise UserError(
            f'--sweep measures all layers alike, and the head runs the last {backbone.query_layers} of this {name} '
            'with its queries: give a model with another head.'
        )


def token_counts(whole: int, num_prefix: int) -> list[int]:
    """Choose the numbers of patch tokens at which a layer is measured.

    They are evenly spaced up to ``whole``; below each quarter also one with which the sequence is a multiple of 64
    long, as kernels like it, and one more than that.
    """
    even = {max(round(whole * k / POINTS), 1) for k in range(1, POINTS + 1)}
    aligned = {whole * k // 4 // 64 * 64 - num_prefix for k in range(1, 5)}
    near = {n for each in aligned for n in (each, each + 1)}
    return sorted(n for n in {1, max(whole // 32, 1), *even, *near} if 1 <= n <= whole)


class _Drawn:
    """Draws the values of a ``search_space``, as optuna's ``Trial``."""

    def __init__(self, seed: int):
        self.random = random.Random(seed)

    def suggest_float(self, name: str, low: float, high: float, step: float) -> float:
        return round(low + step * self.random.randint(0, round((high - low) / step)), 6)

    def suggest_int(self, name: str, low: int, high: int) -> int:
        return self.random.randint(low, high)

    def suggest_categorical(self, name: str, choices: Sequence) -> Any:
        return self.random.choice(list(choices))


def settings_to_measure(backbone: nn.Module, grid: tuple[int, int]) -> dict[str, list[dict]]:
    """Choose settings of every method that works: variant -> values of the key ``token_reduction``.

    They are drawn from the search space of the method, and spread from many tokens to few. Methods by which the number
    of tokens depends on the image are left out: their time does not tell what they themselves take.
    """
    TOKEN_REDUCERS.import_from_location()
    chosen, info = {}, backbone.shape
    for name, method in sorted(TOKEN_REDUCERS.module_dict.items()):
        drawn = defaultdict(dict)
        for seed in range(DRAWS if method.fixed_count else 0):
            try:
                reduction = dict(type=name.removeprefix('mmtr.'), **method.search_space(_Drawn(seed), info))
                reducer = backbone.build_reducer(reduction)
                left = sum(reducer.token_schedule(grid, info.depth) + reducer.ffn_schedule(grid, info.depth))
            except UserError:
                break
            if left < 2 * info.depth * grid[0] * grid[1] and not reducer.restores_late:
                drawn[variant(reduction)].setdefault(left, reduction)
            if method.trained:
                break  # its defaults
        for key, by_left in drawn.items():
            spread = sorted(by_left)
            last = max(min(SETTINGS, len(spread)) - 1, 1)
            chosen[key] = [by_left[n] for n in sorted({spread[k * (len(spread) - 1) // last] for k in range(last + 1)})]
    return chosen


def measure_sweep(
    model: nn.Module,
    images: Tensor,
    run: Callable[[nn.Module], object],
    repeats: int,
    settings: dict,
    with_head: bool,
    progress: Optional[Callable[[int, int], object]] = None,
) -> Sweep:
    """Measure a plain model on one machine; all times in turns.

    Args:
        model: A segmentor, detector or classifier without reduction, in eval mode.
        images: (B, channels, H, W).
        run: Runs a module on ``images``, as it shall be measured.
        repeats: Number of timed rounds.
        settings: ``dtype``, ``compiled`` and ``device``, for the record.
        with_head: Whether the rest of the model is measured too.
        progress: See ``interleave``.

    Raises:
        UserError: See ``check_plain``.
    """
    backbone = model.backbone
    check_plain(backbone)
    info, shape = backbone.shape, tuple(images.shape[-2:])
    grid = tuple(-(-n // side) for n, side in zip(shape, backbone.patch_embed.projection.kernel_size))
    whole = grid[0] * grid[1]
    counts = token_counts(whole, info.num_prefix)
    chosen = settings_to_measure(backbone, grid)

    def reduced(reducer):
        def call():
            with reducer_of(backbone, reducer):
                run(backbone)

        return call

    idle = idle_layers(backbone)  # once: a compiled backbone would be compiled anew for others

    def outside():
        with layers_of(backbone, idle):
            run(backbone)

    calls: dict = dict(outside=outside)
    if with_head:
        calls['model'] = lambda: run(model)
    for count in (None, *counts):
        for with_ffn in (True, False):
            calls[count, with_ffn] = reduced(Cut(info, count, with_ffn))
    reducers = {}
    for key, reductions in chosen.items():
        for k, reduction in enumerate(reductions):
            reducer = reducers[key, k] = backbone.build_reducer(reduction).to(images.device)
            reducer.untrained = False  # its choice does not matter here
            with torch.no_grad():
                reducer.eval().calibrate(reduced(reducer))
            calls[key, k] = reduced(reducer)
    timings = interleave(calls, repeats, progress=progress)
    ms = {key: 1e3 * timing.median / len(images) for key, timing in timings.items()}

    def layer(count):
        return dict(
            layer_ms=(ms[count, True] - ms['outside']) / info.depth,
            attention_ms=(ms[count, False] - ms['outside']) / info.depth,
        )

    found = Sweep(
        machine=machine(str(settings['device'])),
        backbone=identity(backbone),
        settings=dict(shape=list(shape), batch_size=len(images), **settings),
        plain_ms=ms[None, True],
        outside_ms=ms['outside'],
        head_ms=max(ms['model'] - ms[None, True], 0.0) if with_head else None,
        untouched=layer(None),
        curve=[dict(tokens=count, **layer(count)) for count in counts],
        own={},
    )
    own = {}
    for key, reductions in chosen.items():
        # Without an entry in ``own``, what is predicted is the time of the layers alone.
        taken, built = ([each[key, k] for k in range(len(reductions))] for each in (ms, reducers))
        excess = [each - found.predict(*pair).ms for each, *pair in zip(taken, reductions, built)]
        counted = [
            events(each.token_schedule(grid, info.depth), each.ffn_schedule(grid, info.depth), whole) for each in built
        ]
        own[key] = dict(
            per_event=fit(counted, excess, taken),
            measured=[dict(token_reduction=reduction, ms=each) for each, reduction in zip(taken, reductions)],
        )
    found.own.update(own)
    return found
