"""Reducers within windows, against one stage of a Swin that goes from window to window and token to token."""

import pytest
import torch
import torch.nn.functional as F

from mmtr.models.backbones import SwinTransformer
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.reducers.base import NOTHING
from mmtr.tokens import Tokens

DEPTH, CHANNELS, HEADS, WINDOW = 5, 16, 2, 6


def backbone(cfg, window=WINDOW):
    """One stage of five blocks on patches of 4x4 pixels, with weights under which a mistake would show."""
    torch.manual_seed(0)
    model = SwinTransformer(
        embed_dims=CHANNELS,
        depths=(DEPTH,),
        num_heads=(HEADS,),
        strides=(4,),
        out_indices=(0,),
        window_size=window,
        token_reduction=cfg,
    ).eval()
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5 if 'table' in name else 0.15)
    return model


def bicubic(t, a=-0.75):
    """Keys' kernel."""
    if t <= 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * (t**3 - 5 * t**2 + 8 * t - 4) if t < 2 else 0.0


def bilinear(t):
    """Expediting's; its code calls ``F.interpolate(table, mode='bilinear')``."""
    return max(1.0 - t, 0.0)


def interpolated(line, n, kernel):
    """``line`` at ``n`` places, with the edge repeated."""
    values = []
    for i in range(n):
        place = (i + 0.5) * len(line) / n - 0.5
        first = int(place // 1)
        values.append(
            sum(line[min(max(k, 0), len(line) - 1)] * kernel(abs(place - k)) for k in range(first - 1, first + 3))
        )
    return values


def resized(table, old, new, kernel):
    """A head's table (2 H - 1, 2 W - 1) as a list of rows for a window of another size."""
    rows = [interpolated(row, 2 * new[1] - 1, kernel) for row in table.view(2 * old[0] - 1, 2 * old[1] - 1).tolist()]
    columns = [interpolated(column, 2 * new[0] - 1, kernel) for column in zip(*rows)]
    return list(zip(*columns))


def window_of(place, grid, window, shift):
    """Which window a place of a padded grid is in when it is shifted cyclically, where in it, and which part of it."""
    found = []
    for p, n, w, s in zip(place, grid, window, shift):
        p = (p - s) % n
        # A window that the shift wraps around has two parts, which do not see each other.
        found.append((p // w, p % w, p >= n - s))
    (row, i, lower), (column, j, right) = found
    return (row, column, lower, right), (i, j)


def attention(module, x, window, shifted, kernel):
    """Of a whole map (H, W, C), pair by pair."""
    height, width, _ = x.shape
    grid = tuple(-(-n // w) * w for n, w in zip((height, width), window))
    shift = tuple(w // 2 * shifted for w in window)
    x = F.pad(x, (0, 0, 0, grid[1] - width, 0, grid[0] - height)).flatten(0, 1)
    places = [window_of(divmod(p, grid[1]), grid, window, shift) for p in range(len(x))]
    q, k, v = (x @ module.qkv.weight.T + module.qkv.bias).view(len(x), 3, HEADS, -1).unbind(1)
    out = torch.zeros_like(q)
    for head in range(HEADS):
        table = resized(module.relative_position_bias_table[:, head], module.window_size, window, kernel)
        logits = torch.full((len(x), len(x)), -torch.inf)
        products = q[:, head] @ k[:, head].T / q.shape[2] ** 0.5
        for a, (own, (i, j)) in enumerate(places):
            for b, (other, (m, n)) in enumerate(places):
                if own == other:
                    logits[a, b] = products[a, b] + table[i - m + window[0] - 1][j - n + window[1] - 1]
        out[:, head] = logits.softmax(1) @ v[:, head]
    out = out.flatten(1) @ module.proj.weight.T + module.proj.bias
    return out.view(*grid, -1)[:height, :width]


def reduced_side(cfg, n):
    """Rows that are left of n, by the definition of each method."""
    if cfg['type'] == 'CubistMerge':
        return n - min(round(n * cfg['ratio']), n // 2)
    if cfg['type'] == 'Expediting':
        return max(round(n * (cfg['grid'] / WINDOW if isinstance(cfg['grid'], int) else cfg['grid'])), 1)
    share = 1 - (1 - cfg['ratio']) ** 0.5 if cfg['type'] == 'Random' else cfg['ratio']
    return max(n - round(n * share), 1)


def stage(model, cfg, x, span):
    """The map (H, W, C) after the one stage of ``model``: its ``inner`` reducer gets one window at a time."""
    inner, full = model.token_reducer.inner, x.shape[:2]
    window, states = (WINDOW, WINDOW), None
    for i, block in enumerate(model.stages[0].blocks):
        if i == span[1]:
            x, window = given_back(inner, x, states, full, window), (WINDOW, WINDOW)
        if i == span[0]:
            small = reduced_side(cfg, WINDOW)
            rows, columns = (
                sum(reduced_side(cfg, min(WINDOW, n - start)) for start in range(0, n, WINDOW)) for n in full
            )
            reduced, states = torch.full((rows, columns, CHANNELS), torch.nan), {}
            for top in range(0, full[0], WINDOW):
                for left in range(0, full[1], WINDOW):
                    part = x[top : top + WINDOW, left : left + WINDOW]
                    tokens = inner.before_layer(
                        i, inner.after_layer(i - 1, Tokens(part.flatten(0, 1).unsqueeze(0), tuple(part.shape[:2])))
                    )
                    h, w = (reduced_side(cfg, n) for n in part.shape[:2])
                    at = top // WINDOW * small, left // WINDOW * small
                    reduced[at[0] : at[0] + h, at[1] : at[1] + w] = tokens.x[0].view(h, w, -1)
                    states[top, left] = tokens, at, (h, w)
            x, window = reduced, (small, small)
        assert not x.isnan().any()
        x = x + attention(
            block.attn.w_msa, block.norm1(x), window, i % 2 == 1, bilinear if cfg['type'] == 'Expediting' else bicubic
        )
        x = x + block.ffn.layers(block.norm2(x))
    return given_back(inner, x, states, full, window) if span[1] == DEPTH else x


def given_back(inner, x, states, full, window):
    whole = torch.full((*full, CHANNELS), torch.nan)
    for (top, left), (tokens, at, (h, w)) in states.items():
        part = x[at[0] : at[0] + h, at[1] : at[1] + w].flatten(0, 1).unsqueeze(0)
        restored = inner.restore(tokens.replace(x=part))
        whole[top : top + WINDOW, left : left + WINDOW] = restored.x[0].view(*restored.grid, -1)
    assert not whole.isnan().any()
    return whole


CASES = [
    (dict(type='TokenAdapter', ratio=1 / 3, layers=(1, 4), score='max', restore='copy'), (1, 4)),
    (dict(type='TokenAdapter', ratio=0.4, layers=(2, 5), unique=0.2, mode='threshold'), (2, 5)),
    (dict(type='CubistMerge', ratio=0.5, layers=(1, 3)), (1, 3)),
    (dict(type='GridPool', ratio=0.5, layers=(0, 2)), (0, 2)),
    (dict(type='Expediting', grid=4, layer=3, window=11, k=60, temperature=0.01), (3, 5)),
    (dict(type='Expediting', grid=0.5, layer=1, restore='copy'), (1, 5)),
    (dict(type='Random', ratio=0.6, layer=2), (2, 5)),
    (dict(type='Random', ratio=0.3, layer=0, restore='copy', seed=4), (0, 5)),
]


@pytest.mark.parametrize('cfg, span', CASES, ids=str)
@pytest.mark.parametrize(
    'grid', [(9, 13), *(pytest.param(grid, marks=pytest.mark.slow) for grid in ((12, 12), (1, 8)))], ids=str
)
def test_a_stage_is_what_going_from_window_to_window_gives(cfg, span, grid):
    model = backbone(cfg)
    x = torch.randn(2, grid[0] * grid[1], CHANNELS)
    with torch.no_grad():
        out = model.stages[0](x, grid, model.token_reducer)[0]
        plain = model.stages[0](x, grid, NOTHING)[0]
        for i in range(2):
            expected = stage(model, cfg, x[i].view(*grid, -1), span).flatten(0, 1)
            torch.testing.assert_close(out[i], expected, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(out, plain, atol=1e-3)


def test_rows_can_go_layer_by_layer():
    model = backbone(dict(type='TokenAdapter', per_layer=(1, 0), layers=(0, 4)))
    seen = []
    for block in model.stages[0].blocks:
        block.register_forward_hook(
            lambda module, args, kwargs, out: seen.append(kwargs['step'].tokens.windows), with_kwargs=True
        )
    with torch.no_grad():
        out = model(torch.randn(1, 3, 4 * 14, 4 * 7))[0]
    # Windows of 6 rows, and one of the last 2, which keeps a row; columns stay.
    assert [(each.grid, each.window) for each in seen] == [
        ((14, 7), (6, 6)),
        ((11, 7), (5, 6)),
        ((9, 7), (4, 6)),
        ((7, 7), (3, 6)),
        ((14, 7), (6, 6)),
    ]
    assert out.shape == (1, CHANNELS, 14, 7) and out.isfinite().all()


def test_windows_of_the_paper_are_8x8():
    model = backbone(dict(type='TokenAdapter', ratio=1 / 3), window=12)
    assert model.token_reducer.inner.grid_schedule((12, 12), 2) == [(12, 12), (12, 12)]
    for cfg in (
        dict(type='TokenAdapter', ratio=1 / 3, layers=(3, 5)),
        dict(type='Expediting', grid=8, layer=3),
        dict(type='Random', ratio=1 - (8 / 12) ** 2, layer=3),
        dict(type='GridPool', ratio=1 / 3, layers=(3, 5)),
    ):
        model = backbone(cfg, window=12)
        # 24 x 30 patches: four whole windows, and two of 12 x 6.
        assert model.token_schedule((96, 120)) == [720] * 3 + [16 * 20] * 2


def test_positions_and_token_map_are_those_of_the_whole_grid():
    model = backbone(dict(type='TokenAdapter', ratio=0.5, layers=(0, 5)))
    x = torch.randn(2, 9 * 8, CHANNELS)
    reducer = model.token_reducer
    tokens = reducer.before_layer(0, Tokens(x, (9, 8)))
    assert tokens.windows.grid == (4, 4) and tokens.windows.window == (3, 3)
    group, stands_for = reducer.token_map(tokens)
    for i in range(2):
        kept = tokens.index[i].tolist()
        assert sorted(kept) == [p for p in range(72) if group[i, p] > 0]
        # Each row of the smaller grid keeps to the rows of its windows, each column to their columns.
        assert [p // 8 // 6 for p in kept] == [0] * 12 + [1] * 4
        assert [p % 8 // 6 for p in kept] == [0, 0, 0, 1] * 4
        for p, stand_in in enumerate(stands_for[i].tolist()):
            assert stand_in in kept
            # Never across windows.
            assert (p // 8 // 6, p % 8 // 6) == (stand_in // 8 // 6, stand_in % 8 // 6)
    assert reducer.token_map(Tokens(x, (9, 8))) is None


def test_the_smallest_window_at_the_border_keeps_a_representative():
    shape = BackboneInfo(4, 16, 0, (6, 6), stage=3, in_windows=True)
    reducer = build_token_reducer(dict(type='TokenAdapter', ratio=0.8, unique=0.15, layers=(0, 4)), shape)
    # 6 rows: 5 normal, 1 unique would leave none.
    with pytest.raises(ValueError, match='no representative remains'):
        reducer.grid_schedule((6, 6), 4)
    reducer = build_token_reducer(dict(type='TokenAdapter', ratio=0.6, unique=0.2, layers=(0, 4)), shape)
    # Of 1 row 1 would be normal, of 3 rows 2, beside a unique one.
    assert [reducer.grid_schedule((n, n), 1)[0][0] for n in range(1, 7)] == [1, 1, 2, 2, 2, 2]
