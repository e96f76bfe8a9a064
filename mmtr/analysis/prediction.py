"""Predict the speed of reductions from a sweep: what a layer takes on one machine by the number of its tokens."""

import inspect
import json
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any, Optional

import numpy as np
import torch
from torch import nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.plain import ReducibleBackbone
from mmtr.reducers import TokenReducer
from mmtr.registry import TOKEN_REDUCERS

from .speed import machine

#: What two machines, and two runs on one, may not differ in.
SAME_MACHINE = ('cpu', 'gpu', 'threads', 'torch')


@dataclass(frozen=True)
class Prediction:
    """Predicted speed of a reduction.

    Args:
        ms: Time of the backbone in ms an image.
        speed_up: How many times as fast as the plain backbone it is.
        bound: Whether it is at most that fast: the number of its tokens depends on the image, or the sweep knows
            nothing of what the method itself takes.
    """

    ms: float
    speed_up: float
    bound: bool


@dataclass(frozen=True)
class Sweep:
    """Times of a plain ViT on one machine, from which the speed of reductions is predicted. Times are in ms an image.

    Args:
        machine: Of ``mmtr.analysis.speed.machine``.
        backbone: Of ``identity``.
        settings: ``shape`` (H, W) of the images in pixels, ``batch_size``, ``dtype``, ``compiled`` and ``device``.
        plain_ms: The backbone without reduction.
        outside_ms: What is outside the layers: embedding, positions, final norm, maps.
        head_ms: The rest of the model; None: it was not measured.
        untouched: ``layer_ms`` of a layer, and ``attention_ms`` of it without its FFN, while no token is reduced.
        curve: The same of reduced tokens, with their number ``tokens``, ascending.
        own: Variant of a method -> ``per_event``, see ``events``, what the method itself takes; and ``measured``, the
            settings that this was derived from, with ``token_reduction`` and ``ms``.
    """

    machine: dict
    backbone: dict
    settings: dict
    plain_ms: float
    outside_ms: float
    head_ms: Optional[float]
    untouched: dict
    curve: list
    own: dict

    def __post_init__(self):
        for point in (self.untouched, *self.curve):
            float(point['layer_ms']), float(point['attention_ms'])
        tokens = [int(point['tokens']) for point in self.curve]
        if not tokens or tokens != sorted(tokens) or not self.plain_ms > 0:
            raise ValueError
        for each in self.own.values():
            if len(list(map(float, each['per_event']))) != len(EVENTS):
                raise ValueError
            for found in each['measured']:
                float(found['ms']), dict(found['token_reduction'])
        height, width = map(int, self.settings['shape'])
        float(self.outside_ms), float(self.head_ms or 0)
        self.settings.update(shape=[height, width])
        for key in ('batch_size', 'dtype', 'compiled', 'device'):
            self.settings[key]

    @property
    def place(self) -> str:
        """Where it was measured, in words."""
        found, (height, width) = self.machine, self.settings['shape']
        compiled = ', compiled' if self.settings['compiled'] else ''
        return (
            f'{found.get("gpu") or found.get("cpu")}, {found.get("threads")} threads, {height}x{width} pixels, '
            f'batch of {self.settings["batch_size"]}, {self.settings["dtype"]}{compiled}'
        )

    def mismatch(self, backbone: nn.Module, **settings: Any) -> str:
        """Say what the sweep was measured with that is different here: ``name=value, not value``; empty: nothing.

        Args:
            backbone: The backbone that is predicted.
            settings: Those of ``settings`` that must be the same.
        """
        device = str(self.settings['device'])
        here = machine(device if torch.cuda.is_available() else 'cpu')
        pairs = [(self.machine, here, SAME_MACHINE)]
        if isinstance(backbone, ReducibleBackbone):
            own = identity(backbone)
            pairs.append((self.backbone, own, own))
        else:
            pairs.append((self.backbone, dict(type=type(backbone).__name__), ('type',)))
        pairs.append((self.settings, settings, settings))
        for found, wanted, names in pairs:
            for name in names:
                if found.get(name) != wanted.get(name):
                    return f'{name}={found.get(name)!r}, and here it is {wanted.get(name)!r}'
        return ''

    def predict(self, reduction: Optional[dict], reducer: TokenReducer) -> Prediction:
        """Predict the speed of a value of the config key ``token_reduction``, and the reducer that was built of it.

        Raises:
            UserError: It gives tokens back after the head, whose time by tokens is not known.
        """
        if reducer.restores_late:
            raise UserError(
                "token_reduction.restore_at='after_head' changes what the head takes, which a sweep does not predict: "
                "set restore_at='before_norm', or measure it with tools/benchmark.py."
            )
        patch, grid, depth = self.backbone['patch_size'], self.settings['shape'], reducer.backbone.depth
        grid = tuple(-(-n // side) for n, side in zip(grid, patch))
        attention, ffn = (count(grid, depth) for count in (reducer.token_schedule, reducer.ffn_schedule))
        whole = grid[0] * grid[1]
        # A layer is its attention, with the tokens that this sees, and its FFN, with those that are left for that.
        layers = sum(
            self._ms('attention_ms', a, whole) + self._ms('layer_ms', f, whole) - self._ms('attention_ms', f, whole)
            for a, f in zip(attention, ffn)
        )
        cost = per_event(self.own, reduction) if reducer.fixed_count else None
        own = 0.0 if cost is None else float(np.dot(cost, events(attention, ffn, whole)))
        plain = self.outside_ms + depth * self.untouched['layer_ms']
        ms = self.outside_ms + layers + own
        return Prediction(ms, plain / ms, reduction is not None and cost is None)

    def _ms(self, part, count, whole):
        if count >= whole:
            return self.untouched[part]
        return float(np.interp(count, *zip(*((point['tokens'], point[part]) for point in self.curve))))


def read_sweep(path: str, option: str = '--sweep') -> Sweep:
    """Read the file of a sweep; ``option`` is what gave its path.

    Raises:
        UserError: There is no such file, or it is no sweep.
    """
    try:
        with open(path) as file:
            found = json.load(file)
        return Sweep(**{name: found[name] for name in inspect.signature(Sweep).parameters})
    except OSError as error:
        raise UserError(f"{option} '{path}' cannot be read ({error.strerror}): {MAKE}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{option} '{path}' is damaged, or no sweep: {MAKE}.") from error


MAKE = 'make one with tools/benchmark.py CONFIG --shape H W --sweep FILE.json'


def identity(backbone: nn.Module) -> dict:
    """Describe all of a plain ViT that its time depends on, as JSON values."""
    layer, info = backbone.layers[0], backbone.shape
    linears = layer.linears()
    return dict(
        type=type(backbone).__name__,
        depth=info.depth,
        embed_dims=info.embed_dims,
        heads=next(int(module.num_heads) for module in layer.attn.modules() if hasattr(module, 'num_heads')),
        ffn_channels=int(linears['fc2'][1].shape[1]),
        num_prefix=info.num_prefix,
        patch_size=list(backbone.patch_embed.projection.kernel_size),
        out_indices=len(backbone.out_indices),
        attn_backend=next(module.backend for module in layer.attn.modules() if hasattr(module, 'backend')),
        windows=any(getattr(layer.attn, 'window', None) for layer in backbone.layers),
        query_layers=backbone.query_layers,
        peft=None if backbone.peft is None else type(backbone.peft).__name__,
    )


#: What costs a method time of its own, beside the layers.
EVENTS = ('reductions', 'tokens that are reduced', 'pairs of these and those left', 'sublayers with fewer tokens')


def events(attention: list[int], ffn: list[int], whole: int) -> list[float]:
    """Count, for the tokens in the attention and in the FFN of each layer, what ``EVENTS`` names.

    Tokens are in units of ``whole``, the number of patches, pairs in its square; sublayers are a share.
    """
    counts = [whole, *chain.from_iterable(zip(attention, ffn))]
    drops = [(a / whole, b / whole) for a, b in zip(counts, counts[1:]) if b < a]
    fewer = sum(n < whole for n in counts[1:]) / max(len(counts) - 1, 1)
    return [float(len(drops)), sum(a for a, _ in drops), sum(a * b for a, b in drops), fewer]


def fit(counted: list[list[float]], excess: list[float], ms: list[float]) -> list[float]:
    """Fit the cost of each of ``EVENTS``, none below 0, to settings of one method by least squares.

    At most half as many events as settings get a cost, so that noise is averaged.

    Args:
        counted: Of each setting, its ``events``.
        excess: Of each setting, ms beyond its layers.
        ms: Of each setting, all of its time; errors count in shares of it.
    """
    whole = np.array(ms, float)
    x, y = np.array(counted, float) / whole[:, None], np.array(excess, float) / whole
    best = np.zeros(x.shape[1])
    for size in range(1, max(len(y) // 2, 1) + 1):
        for used in map(list, combinations(range(x.shape[1]), min(size, x.shape[1]))):
            tried = np.zeros(x.shape[1])
            tried[used] = np.linalg.lstsq(x[:, used], y, rcond=None)[0]
            if (tried >= 0).all() and _error(x, tried, y) < _error(x, best, y) - 1e-12:
                best = tried
    return best.tolist()


def _error(x, cost, y):
    return float(np.square(x @ cost - y).sum())


def variant(reduction: dict) -> str:
    """Name a method with those of its settings, defaults included, that are words or flags, which say what it does."""
    method = reduction['type'] if isinstance(reduction['type'], type) else TOKEN_REDUCERS.get(reduction['type'])
    defaults = {name: each.default for name, each in inspect.signature(method.__init__).parameters.items()}
    given = {**defaults, **reduction}
    words = [f'{name}={given[name]}' for name in defaults if isinstance(given[name], (str, bool))]
    return ', '.join([method.__name__, *words])


def per_event(own: dict, reduction: Optional[dict]) -> Optional[list[float]]:
    """Return the cost of each of ``EVENTS`` for a reduction: of its variant, or the mean of its method's variants.

    None: the method was not measured.
    """
    if reduction is None:
        return [0.0] * len(EVENTS)
    name = variant(reduction)
    if name in own:
        return own[name]['per_event']
    method = name.partition(',')[0]
    alike = [each['per_event'] for key, each in own.items() if key.partition(',')[0] == method]
    return np.mean(alike, 0).tolist() if alike else None
