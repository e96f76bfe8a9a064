"""ToMe with PiToMe's matching, written out token by token, for one image."""

import math

import pytest
import torch

from mmtr import UserError
from mmtr.ops.bipartite import energy_matching

from .references import likeness
from .test_tome import HEADS, attend_slowly, ffn, run_progressive, some_tokens, tome, weighted_mean


def energy_slowly(keys, r, margin):
    """Which places of keys (N, D) each token that is left came from, in order: a list of lists."""
    places = range(len(keys))
    alike = [[likeness(keys[a], keys[b], 'cosine') for b in places] for a in places]
    energy = [sum(v if v > 0 else math.exp(v) - 1 for v in (s - margin for s in alike[a])) for a in places]
    ranked = sorted(places, key=lambda a: (-energy[a], a))
    joining, staying = ranked[: 2 * r : 2], ranked[1 : 2 * r : 2]
    joined = {n: [n] for n in places if n not in joining}
    for a in joining:
        joined[max(staying, key=lambda b: alike[a][b])].append(a)
    return [joined[n] for n in sorted(joined)]


@pytest.mark.parametrize('prefix', [0, 1, 4])
@pytest.mark.parametrize(
    'settings, counts, proportional',
    [(dict(r=3), (3, 3, 3), None), (dict(r=[2, 0, 5]), (2, 0, 5), True), (dict(r=100), (7, 4, 2), False)],
)
def test_merging_matches_the_release_token_by_token(settings, counts, proportional, prefix):
    given = dict(settings, proportional_attention=proportional, restore='copy')
    reducer = tome(3, prefix, mode='progressive', matching='energy', **given)
    assert reducer.token_schedule((3, 5), 3) == [15, 15 - counts[0], 15 - counts[0] - counts[1]]
    tokens = some_tokens(prefix=prefix)
    flow = run_progressive(reducer, tokens, 3)
    restored = reducer.restore(flow)
    for image, x in enumerate(tokens.x):
        groups = [[n] for n in range(len(x))]
        for layer, r in enumerate(counts):
            sizes = [len(members) for members in groups]
            keys = (2 * x).sin().reshape(len(x), HEADS, -1).mean(1)
            # As released, a large token counts as one key.
            x = x + attend_slowly(2 * x, sizes if proportional else [1] * len(x))
            of_patches = energy_slowly(keys[prefix:], r, 0.75 * (1 - layer / 3))
            joined = [[n] for n in range(prefix)] + [[prefix + n for n in members] for members in of_patches]
            x = weighted_mean(x, joined, sizes)
            groups = [[n for j in members for n in groups[j]] for members in joined]
            x = x + ffn(x)
        assert flow.size[image].tolist() == [len(members) for members in groups[prefix:]]
        torch.testing.assert_close(flow.x[image], x, atol=1e-4, rtol=1e-4)
        slot = {n: j for j, members in enumerate(groups) for n in members}
        torch.testing.assert_close(restored.x[image], x[[slot[n] for n in range(15 + prefix)]], atol=1e-4, rtol=1e-4)


def test_what_is_rare_is_protected():
    # Five tokens of one kind, and two that nothing is like.
    angles = torch.tensor([0.0, 1.5, 0.1, 0.2, 3.0, 0.15, 0.05])
    matching = energy_matching(torch.stack([angles.cos(), angles.sin()], 1)[None], 2, 0.5)
    assert {1, 4} < set(matching.kept[0].tolist()) and matching.kept.shape == (1, 5)


def test_sublayers_have_no_other_matching():
    with pytest.raises(UserError, match="matching='energy' is for mode='progressive'"):
        tome(matching='energy')
