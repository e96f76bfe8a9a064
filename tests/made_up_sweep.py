"""A sweep that nobody measured, for the backbone of a test."""

import json

from mmtr.analysis.prediction import Sweep, identity
from mmtr.analysis.speed import machine

#: ms of a layer, and of it without its FFN, for a number of tokens: with a jump, as kernels have.
LAYER_MS = {1: 1.0, 4: 2.0, 5: 4.0, 16: 9.0, 24: 12.0, 35: 20.0}


def made_up(model, shape, layer_ms=None, **changes):
    """Sweep of the backbone ``model``: attention takes 0.4 of a layer, which takes 0.5 ms more before a reduction."""
    layer_ms = LAYER_MS if layer_ms is None else layer_ms

    def point(ms):
        return dict(layer_ms=ms, attention_ms=0.4 * ms)

    untouched = point(max(layer_ms.values()) + 0.5)
    fields = dict(
        machine=machine('cpu'),
        backbone=identity(model),
        settings=dict(shape=list(shape), batch_size=1, dtype='float32', compiled=False, device='cpu'),
        plain_ms=3 + len(model.layers) * untouched['layer_ms'],
        outside_ms=3.0,
        head_ms=2.0,
        untouched=untouched,
        curve=[dict(tokens=n, **point(ms)) for n, ms in layer_ms.items()],
        own={},
    )
    return Sweep(**{**fields, **changes})


def write(path, sweep):
    """Write it to a file, and return its path."""
    path.write_text(json.dumps(vars(sweep)))
    return path
