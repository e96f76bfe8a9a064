"""What each layer of a backbone does: tokens, attention diversity, token similarity, time."""

from collections.abc import Sequence
from functools import partial
from math import isnan
from statistics import fmean, median

import torch
from torch import Tensor, nn

from mmtr.ops.diversity import attention_similarity, mean_pairwise_cosine
from mmtr.reducers import TokenReducer
from mmtr.reducers.observer import Observer, reducer_of

from .speed import interleave, now

#: What is measured of each layer.
QUANTITIES = ('attention_tokens', 'ffn_tokens', 'attention_diversity', 'token_similarity', 'ms')
WARMUP = 1


class _Meter(Observer):
    """Notes, for one image, the tokens that each layer computes on and how alike they and their attention are."""

    def __init__(self, inner):
        super().__init__(inner)
        self.found = {quantity: [torch.nan] * inner.backbone.depth for quantity in QUANTITIES[:-1]}

    def attention(self, i, attn, x, tokens):
        """Whoever attends, the module's own ``branch`` or the reducer, is heard, each of its groups of tokens."""
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
            # A window of one token has nothing to be compared with.
            compared = [(n, value) for n, value in zip(counts, similarities) if not isnan(value)]
            self.found['attention_tokens'][i] = sum(counts)
            if compared:
                mean = sum(n * value for n, value in compared) / sum(n for n, _ in compared)
                self.found['attention_diversity'][i] = 1 - mean

    def ffn(self, i, ffn, x, tokens):
        """Counts what the FFN is called on."""

        def heard(y):
            self.found['ffn_tokens'][i] = y.shape[:-1].numel() - tokens.num_prefix
            return ffn(y)

        return self.inner.ffn(i, heard, x, tokens)

    def after_layer(self, i, tokens):
        """Looks at the patch tokens that a head would get if this layer were the last one."""
        tokens = self.inner.after_layer(i, tokens)
        full = self.inner.restore(tokens)
        self.found['token_similarity'][i] = float(mean_pairwise_cosine(full.patches).mean())
        return tokens


class _Clock(Observer):
    """Times the layers of one forward pass, and what is restored outside of them."""

    def __init__(self, inner):
        super().__init__(inner)
        self.layers, self.restored = [0.0] * inner.backbone.depth, 0.0

    def before_layer(self, i, tokens):
        """A layer begins."""
        self.started = now()
        return self.inner.before_layer(i, tokens)

    def after_layer(self, i, tokens):
        """A layer ends."""
        tokens = self.inner.after_layer(i, tokens)
        self.layers[i] += now() - self.started
        return tokens

    def restore(self, tokens):
        """Timed."""
        start = now()
        tokens = self.inner.restore(tokens)
        self.restored += now() - start
        return tokens


@torch.inference_mode()
def analyze_layers(
    backbone: nn.Module, images: Sequence[Tensor], reducers: dict[str, TokenReducer], repeats: int = 5, progress=None
) -> dict[str, dict]:
    """Measure every layer under every reducer; times in runs of their own, in turns, without the other measures.

    Args:
        backbone: With a ``token_reducer``, in eval mode.
        images: Each (1, 3, height, width), as the backbone takes it.
        reducers: Name to reducer, built for that backbone.
        repeats: Timed runs of each image.
        progress: Called with (rounds done, rounds in all) of the timed runs.

    Returns:
        Name to ``layers``, each of ``QUANTITIES`` -> one value a layer, a mean over images, NaN where
        a layer has none; and ``restore_ms`` and ``backbone_ms``. Tokens are patch tokens. Times are medians
        over the repeats. Diversity is 1 - the mean cosine similarity of the attention maps of two patch tokens
        in a head, over the tokens that the layer computes on; token similarity is that of two patches' tokens
        after the layer, restored to the full grid.
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
