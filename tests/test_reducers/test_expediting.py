import math

import pytest
import torch
from torch.nn import functional as F

from mmtr import UserError
from mmtr.analysis.flops import count_flops
from mmtr.ops.clustering import cluster_tokens, reconstruction
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.tokens import Tokens

from .test_contract import images
from .test_contract import vit as backbone

GRID, CHANNELS, PREFIX = (6, 9), 16, 2


def expediting(depth=6, **settings):
    settings = {'restore': 'copy', **settings}  # the default gives back a change
    return build_token_reducer(dict(type='Expediting', **settings), BackboneInfo(depth, CHANNELS, PREFIX))


def some_tokens(batch=2, grid=GRID, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, PREFIX + grid[0] * grid[1], CHANNELS, generator=generator)
    return Tokens(x * scale, grid, PREFIX)


def squared(a, b):
    return sum((p - q) ** 2 for p, q in zip(a.tolist(), b.tolist()))


def cluster_one(x, grid, clusters, n_iters, window, temperature):
    """One image's tokens (N, C), token by token -> centroids (M, C) and what each holds (M)."""
    pooled = F.adaptive_avg_pool2d(x.T.reshape(1, -1, *grid), clusters)[0]
    centroids = [pooled[:, i, j] for i in range(clusters[0]) for j in range(clusters[1])]
    for _ in range(n_iters):
        total, size = [torch.zeros(x.shape[1]) for _ in centroids], [0.0] * len(centroids)
        for n, token in enumerate(x):
            row, column = n // grid[1] * clusters[0] // grid[0], n % grid[1] * clusters[1] // grid[1]
            near = [
                m
                for m in range(len(centroids))
                if abs(m // clusters[1] - row) <= window // 2 and abs(m % clusters[1] - column) <= window // 2
            ]
            share = [math.exp(-temperature * squared(token, centroids[m])) for m in near]
            for m, part in zip(near, share):
                total[m] = total[m] + token * part / sum(share)
                size[m] += part / sum(share)
        centroids = [t / s for t, s in zip(total, size)]
    return torch.stack(centroids), torch.tensor(size)


def reconstruct_one(x, centroids, refined, k, temperature, normalize):
    restored = []
    for token in x:
        distance = [squared(token, c) for c in centroids]
        nearest = sorted(range(len(centroids)), key=lambda m: distance[m])[:k]
        weights = torch.tensor([math.exp(-temperature * distance[m]) for m in nearest])
        weights = weights / (weights.norm() if normalize == 'l2' else weights.sum())
        restored.append(sum(w * refined[m] for w, m in zip(weights, nearest)))
    return torch.stack(restored)


SETTINGS = [
    dict(),
    dict(grid=(4, 5), n_iters=1, window=3, temperature=0.3),
    dict(grid=0.5, n_iters=3, window=1),
    dict(grid=(1.0, 0.4), window=11, k=3),
    dict(grid=(2, 9), temperature=0.5, recon_temperature=0.3, normalize='l1'),
    dict(grid=(1, 2), window=3),
]


@pytest.mark.parametrize('settings', SETTINGS, ids=str)
def test_matches_the_paper_token_by_token(settings):
    reducer, tokens = expediting(layer=1, **settings), some_tokens()
    settings = {
        **dict(grid=0.7, n_iters=5, window=5, temperature=0.02, k=20, recon_temperature=0.02, normalize='l2'),
        **settings,
    }
    grid = settings['grid'] if isinstance(settings['grid'], tuple) else (settings['grid'],) * 2
    clusters = tuple(n if isinstance(n, int) else round(n * side) for n, side in zip(grid, GRID))
    inside = reducer.before_layer(1, tokens)
    outside = reducer.restore(inside.replace(x=inside.x.square() + 1))
    for image in range(2):
        x = tokens.patches[image]
        centroids, size = cluster_one(
            x, GRID, clusters, settings['n_iters'], settings['window'], settings['temperature']
        )
        restored = reconstruct_one(
            x, centroids, centroids.square() + 1, settings['k'], settings['recon_temperature'], settings['normalize']
        )
        torch.testing.assert_close(inside.patches[image], centroids, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(inside.size[image], size, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(outside.patches[image], restored, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inside.prefix, tokens.prefix)
    torch.testing.assert_close(outside.prefix, tokens.prefix.square() + 1)
    assert outside.index is None and outside.size is None and outside.undo is None


def test_only_centroids_in_the_window_are_seen():
    # 16 cells of 4 tokens, those of the first 2 cells are ones: the first 3 centroids see them, no other.
    x = torch.zeros(1, 64, 4)
    x[:, :8] = 1.0
    centroids, size = cluster_tokens(x, (64, 1), (64 // 4, 1), n_iters=5, window=3, temperature=0.1)
    assert (centroids[0, :3] > 0.1).all() and (centroids[0, 3:].abs() < 1e-6).all()
    assert size.sum().item() == pytest.approx(64)


def test_clusters_stand_in_the_middle_of_their_cells():
    inside = expediting(grid=(2, 3)).before_layer(2, some_tokens())
    assert inside.index[0].tolist() == [1 * 9 + 1, 1 * 9 + 4, 1 * 9 + 7, 4 * 9 + 1, 4 * 9 + 4, 4 * 9 + 7]


def test_distances_survive_a_large_common_offset():
    # Pre-trained ViTs have channels that are large and nearly the same in all tokens.
    x, offset = some_tokens(1).patches, torch.zeros(CHANNELS)
    offset[3] = 2000.0
    exact = cluster_tokens(x, GRID, (4, 6), 5, 5, 0.5)[0]
    shifted = cluster_tokens(x + offset, GRID, (4, 6), 5, 5, 0.5)[0] - offset
    torch.testing.assert_close(shifted, exact, atol=2e-3, rtol=0)
    weights = reconstruction(x, exact, 5, 0.5, 'l2').weights
    torch.testing.assert_close(
        reconstruction(x + offset, exact + offset, 5, 0.5, 'l2').weights, weights, atol=2e-3, rtol=0
    )


@pytest.mark.parametrize('normalize', ['l2', 'l1'])
def test_tokens_far_from_all_clusters_are_restored(normalize):
    # exp(-0.02 d^2) of all of them underflows to 0.
    tokens = some_tokens(scale=60.0)
    reducer = expediting(layer=0, grid=(2, 3), normalize=normalize)
    weights = reducer.before_layer(0, tokens).undo.parts[0].assignment.weights
    norm = weights.norm(dim=2) if normalize == 'l2' else weights.sum(2)
    torch.testing.assert_close(norm, torch.ones_like(norm))


def test_clustering_is_detached_and_the_mean_is_not():
    x = some_tokens(1).patches.clone().requires_grad_()
    centroids, size = cluster_tokens(x, GRID, (4, 6), 3, 5, 0.5)
    assert not size.requires_grad
    assert not reconstruction(x, centroids, 3, 0.5, 'l2').weights.requires_grad
    weight = torch.randn(centroids.shape)
    (centroids * weight).sum().backward()
    # With fixed shares a centroid is linear in the tokens, so the gradient gives it back.
    torch.testing.assert_close((x.grad * x).sum(), (centroids * weight).sum(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(x.grad.sum((0, 1)), weight.sum((0, 1)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_clustering_is_in_float32_under_autocast(dtype):
    tokens, reducer = some_tokens(), expediting(layer=0)
    exact = reducer.restore(reducer.before_layer(0, tokens)).x
    with torch.autocast('cpu', dtype):
        out = reducer.restore(reducer.before_layer(0, tokens)).x
    assert torch.equal(out, exact)


def test_token_map_names_the_cluster_with_the_largest_share():
    reducer = expediting(layer=0, grid=(2, 3), temperature=1.0)
    tokens = some_tokens(1)
    assert reducer.token_map(tokens) is None
    inside = reducer.before_layer(0, tokens)
    group, stands_for = reducer.token_map(inside)
    assert group[0].nonzero().flatten().tolist() == inside.index[0].tolist()
    nearest = torch.cdist(tokens.patches[0], inside.patches[0]).argmin(1)
    assert stands_for[0].tolist() == inside.index[0][nearest].tolist()


def test_schedule_of_the_paper():
    # Token grids of 40x40 patches: 28x28 is 0.7 of each side.
    assert expediting(24).token_schedule((40, 40), 24) == [1600] * 10 + [784] * 14
    assert expediting(24, layer=8, grid=(20, 20)).token_schedule((40, 40), 24) == [1600] * 8 + [400] * 16
    assert expediting(12).layer == 5


def test_flops_are_those_of_near_centroids_only():
    count = count_flops(backbone(dict(type='Expediting', layer=0, window=1)), images(1, 320, 320))
    plain = count_flops(backbone(None), images(1, 320, 320))
    assert count.unsupported == {}
    assert count.total < plain.total
    wide = count_flops(backbone(dict(type='Expediting', layer=0, window=27)), images(1, 320, 320))
    # A row of 20 tokens is compared with 1 row or all 14 rows of 14 clusters, then averaged: 5 rounds.
    assert wide.total - count.total == 5 * 2 * 20 * 20 * 13 * 14 * 32


def test_grid_larger_than_the_patches_is_refused():
    reducer = expediting(grid=(7, 9))
    with pytest.raises(UserError, match=r'grid=\(7, 9\) is more than the 6x9 patches'):
        reducer.before_layer(2, some_tokens())
    with pytest.raises(UserError, match='is more than the 6x9 patches'):
        reducer.token_schedule(GRID, 6)


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(layer=6), 'layer=6 must be a whole number from 0 to 5'),
        (dict(layer=1.5), 'layer=1.5 must be a whole'),
        (dict(layer='last'), "layer='last' must be a whole"),
        (dict(grid=0), 'grid=0 must be a fraction above 0, up to 1, or a whole number from 1'),
        (dict(grid=28.0), 'grid=28.0 must be'),
        (dict(grid=(0.5, -0.1)), r'grid=\(0.5, -0.1\) must be'),
        (dict(grid=(1, 2, 3)), r'grid=\(1, 2, 3\) must be .*, or two for'),
        (dict(grid=True), 'grid=True must be'),
        (dict(n_iters=0), 'n_iters=0 must be a whole number from 1 to'),
        (dict(window=4), 'window=4 must be an odd number'),
        (dict(window=-1), 'window=-1 must be an odd number from 1'),
        (dict(k=0), 'k=0 must be a whole number from 1 to'),
        (dict(temperature=0), 'temperature=0 must be a number above 0'),
        (dict(recon_temperature=float('nan')), 'recon_temperature=nan must be a number above 0'),
        (dict(normalize='max'), "normalize='max' must be one of l2, l1"),
    ],
)
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        expediting(**settings)
