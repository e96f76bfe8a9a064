"""Measure each layer of a backbone: tokens, attention diversity, token similarity, time."""

from collections.abc import Sequence
from functools import partial
from math import isnan
from statistics import fmean, median
from typing import Callable, Optional

import torch
from torch import Tensor, nn

from mmtr.ops.diversity import attention_similarity, mean_pairwise_cosine
from mmtr.reducers import TokenReducer
from mmtr.reducers.observer import Observer, reducer_of

from .speed import interleave, now

#: Quantities that are measured in each layer.
QUANTITIES = ('attention_tokens', 'ffn_tokens', 'attention_diversity', 'token_similarity', 'ms')
WARMUP = 1


class _Meter(Observer):
    """Measures, for one image, the number and similarity of the tokens and attention maps of each layer."""

    def __init__(self, inner):
        super().__init__(inner)
        self.found = {quantity: [torch.nan] * inner.backbone.depth for quantity in QUANTITIES[:-1]}

    def attention(self, i, attn, x, tokens):
        """Measure each group of tokens that the attention module's ``within`` computes, whoever calls it."""
        within, counts, similarities = attn.within, [], []

        def heard(groups, count):
            for q, k, _, bias in groups:
                patches, rows = q[:, :, tokens.num_prefix :], bias
                if bias is not None and bias.shape[-2] > 1:
                    rows = bias[..., tokens.num_prefix :, :]
                counts.append(patches.shape[0] * patches.shape[2])
                similarities.append(float(attention_similarity(patches, k, rows).mean()))
            return within(groups, count)

        attn.within = heard
        try:
            return self.inner.attention(i, attn, x, tokens)
        finally:
            del attn.within
            # A window of one token has no pairs, so its similarity is NaN.
            compared = [(n, value) for n, value in zip(counts, similarities) if not isnan(value)]
            self.found['attention_tokens'][i] = sum(counts)
            if compared:
                mean = sum(n * value for n, value in compared) / sum(n for n, _ in compared)
                self.found['attention_diversity'][i] = 1 - mean

    def ffn(self, i, ffn, x, tokens):
        """Count the tokens that the FFN computes."""

        def heard(y):
            self.found['ffn_tokens'][i] = y.shape[:-1].numel() - tokens.num_prefix
            return ffn(y)

        return self.inner.ffn(i, heard, x, tokens)

    def after_layer(self, i, tokens):
        """Measure the patch tokens that a head would get if this layer were the last one."""
        tokens = self.inner.after_layer(i, tokens)
        full = self.inner.restore(tokens)
        self.found['token_similarity'][i] = float(mean_pairwise_cosine(full.patches).mean())
        return tokens


class _Clock(Observer):
    """Times the layers of one forward pass, and ``restore``, which runs outside of them."""

    def __init__(self, inner):
        super().__init__(inner)
        self.layers, self.restored = [0.0] * inner.backbone.depth, 0.0

    def before_layer(self, i, tokens):
        """Start the clock of a layer."""
        self.started = now()
        return self.inner.before_layer(i, tokens)

    def after_layer(self, i, tokens):
        """Stop the clock of a layer."""
        tokens = self.inner.after_layer(i, tokens)
        self.layers[i] += now() - self.started
        return tokens

    def restore(self, tokens):
        """Time the restoration of the tokens."""
        start = now()
        tokens = self.inner.restore(tokens)
        self.restored += now() - start
        return tokens


@torch.inference_mode()
def analyze_layers(
    backbone: nn.Module,
    images: Sequence[Tensor],
    reducers: dict[str, TokenReducer],
    repeats: int = 5,
    progress: Optional[Callable[[int, int], None]] = None,
) -> dict[str, dict]:
    """Measure every layer with every reducer; times are measured in separate runs, in turns.

    Args:
        backbone: A backbone with a ``token_reducer``, in eval mode.
        images: Each (1, 3, height, width), preprocessed.
        reducers: Name -> reducer, built for that backbone.
        repeats: Number of timed runs of each image.
        progress: Called with (rounds done, rounds in all) of the timed runs.

    Returns:
        Name -> dict with ``layers``, which maps each of ``QUANTITIES`` to one value a layer, a mean over images, or
        NaN; and with ``restore_ms`` and ``backbone_ms``. Tokens are numbers of patch tokens. Times are medians over
        the repeats, in ms an image. Attention diversity is 1 minus the mean cosine similarity of the attention maps
        of two patch tokens in a head, over the tokens that the layer computes. Token similarity is the mean cosine
        similarity of two patch tokens after the layer, restored to the full grid.
    """
    results = {}
    for name, reducer in reducers.items():
        meters = [_observe(backbone, image, _Meter(reducer)) for image in images]
        results[name] = dict(
            layers={
                quantity: [fmean(values) for values in zip(*(meter.found[quantity] for meter in meters))]
                for quantity in meters[0].found
            }
        )
    clocks = {(name, i): [] for name in reducers for i in range(len(images))}

    def run(name, i):
        clocks[name, i].append(_observe(backbone, images[i], _Clock(reducers[name])))

    timings = interleave({key: partial(run, *key) for key in clocks}, repeats, WARMUP, progress)
    for name, result in results.items():
        keys = [(name, i) for i in range(len(images))]
        result['layers']['ms'] = [
            1e3 * fmean(median(clock.layers[layer] for clock in clocks[key][WARMUP:]) for key in keys)
            for layer in range(reducers[name].backbone.depth)
        ]
        result['restore_ms'] = 1e3 * fmean(median(clock.restored for clock in clocks[key][WARMUP:]) for key in keys)
        result['backbone_ms'] = 1e3 * fmean(timings[key].median for key in keys)
    return results


def _observe(backbone, image, observer):
    with reducer_of(backbone, observer):
        backbone(image)
    return observer
