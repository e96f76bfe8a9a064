import pytest
import torch

from mmtr import UserError
from mmtr.analysis.flops import count_flops
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.tokens import Tokens

from .test_contract import images
from .test_contract import vit as backbone

GRID, CHANNELS, PREFIX = (5, 8), 16, 2


def grid_pool(depth=6, **settings):
    return build_token_reducer(dict(type='GridPool', **settings), BackboneInfo(depth, CHANNELS, PREFIX))


def pool_one(x, rows, columns):
    """Mean of the patches of each cell, one by one; a patch on a border belongs to both cells."""
    height, width = GRID
    return torch.stack(
        [
            torch.stack(
                [
                    x[r * width + c]
                    for r in range(height)
                    for c in range(width)
                    if i * height // rows <= r < (i + 1) * height / rows
                    and j * width // columns <= c < (j + 1) * width / columns
                ]
            ).mean(0)
            for i in range(rows)
            for j in range(columns)
        ]
    )


def upsample_one(y, rows, columns):
    """Each patch between the centres of its four nearest cells."""
    out = []
    for r in range(GRID[0]):
        for c in range(GRID[1]):
            v = min(max((r + 0.5) * rows / GRID[0] - 0.5, 0), rows - 1)
            u = min(max((c + 0.5) * columns / GRID[1] - 0.5, 0), columns - 1)
            top, left = int(v), int(u)
            bottom, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
            fv, fu = v - top, u - left
            out.append(
                (1 - fv) * ((1 - fu) * y[top * columns + left] + fu * y[top * columns + right])
                + fv * ((1 - fu) * y[bottom * columns + left] + fu * y[bottom * columns + right])
            )
    return torch.stack(out)


@pytest.mark.parametrize('restore', ['residual', 'copy'])
@pytest.mark.parametrize('ratio, cells', [(0.5, (3, 4)), ((0.6, 0.25), (2, 6)), (0.9, (1, 1)), ((0, 0.5), (5, 4))])
def test_pools_and_restores_patch_by_patch(ratio, cells, restore):
    reducer = grid_pool(ratio=ratio, layers=(1, 3), restore=restore)
    tokens = Tokens(torch.randn(2, PREFIX + 40, CHANNELS, generator=torch.Generator().manual_seed(0)), GRID, PREFIX)
    assert reducer.before_layer(0, tokens) is tokens
    inside = reducer.before_layer(1, tokens)
    assert torch.equal(inside.prefix, tokens.prefix)
    refined = inside.replace(x=inside.x.square() + 1)
    assert reducer.after_layer(1, refined) is refined
    out = reducer.after_layer(2, refined)
    for image in range(2):
        x = tokens.patches[image]
        merged = pool_one(x, *cells)
        torch.testing.assert_close(inside.patches[image], merged)
        expected = upsample_one(merged.square() + 1, *cells)
        if restore == 'residual':
            expected = x + expected - upsample_one(merged, *cells)
        torch.testing.assert_close(out.patches[image], expected, atol=1e-5, rtol=1e-5)
    assert inside.size.sum(1).tolist() == pytest.approx([40, 40])
    assert out.index is None and out.size is None and out.undo is None


def test_counts():
    assert grid_pool(24).token_schedule((40, 40), 24) == [1600] * 10 + [400] * 14
    assert grid_pool(ratio=(0.99, 0), layers=(0, 2)).token_schedule((5, 8), 6) == [8, 8, 40, 40, 40, 40]
    assert grid_pool(layers=(3, 3)).token_schedule((5, 8), 6) == [40] * 6


def test_the_token_map_is_that_of_cells():
    reducer = grid_pool(ratio=(0.6, 0.5), layers=(0, 6))
    inside = reducer.before_layer(0, Tokens(torch.zeros(1, PREFIX + 40, CHANNELS), GRID, PREFIX))
    group, stands_for = reducer.token_map(inside)
    assert group.sum() == 8 and reducer.token_map(reducer.restore(inside)) is None
    assert stands_for[0].view(5, 8)[0].tolist() == [9, 9, 11, 11, 13, 13, 15, 15]
    assert [group[0, p].item() for p in inside.index[0]] == [1] * 8


def test_pooling_costs_next_to_nothing():
    plain, reduced = (count_flops(backbone(cfg), images(1)) for cfg in (None, dict(type='GridPool', layers=(0, 4))))
    assert reduced.unsupported == {}
    # 5x7 patches become 3x3 (round(2.5) = 2 rows and round(3.5) = 4 columns go), with a class token.
    saved = [4 * (12 * n * 32 * 32 + 2 * n * n * 32 + 10 * n * 32) for n in (36, 10)]
    assert 0 < reduced.total - (plain.total - saved[0] + saved[1]) < 0.01 * plain.total


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(ratio=1), 'ratio=1 must be a share of at least 0, below 1'),
        (dict(ratio=(0.5, -0.1)), r'ratio=\(0.5, -0.1\) must be a share'),
        (dict(ratio='half'), "ratio='half' must be .*, or two for"),
        (dict(layers=(3, 7)), r'layers=\(3, 7\) must be a span of layers \(a, b\), 0 <= a <= b <= 6'),
    ],
)
def test_impossible_settings_are_refused_when_built(settings, words):
    with pytest.raises(UserError, match=words):
        grid_pool(**settings)
