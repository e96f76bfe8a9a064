# What docs/benchmarks.md compares on CamVid: every training-free method at several strengths and starts, on 12 layers.
PAPER = dict(score='max', restore='copy')
RATIOS = (0.2, 0.3, 0.4, 0.5, 0.6)


def _spans(name, ratios=RATIOS, starts=(5, 2), **settings):
    return {
        f'{name} ({start}, 12) {ratio}': dict(layers=(start, 12), ratio=ratio, **settings)
        for start in starts
        for ratio in ratios
    }


reductions = {
    **_spans('TokenAdapter', type='TokenAdapter'),
    **_spans('TokenAdapter euclidean', (0.4, 0.45, 0.5), (1,), type='TokenAdapter', metric='euclidean'),
    **_spans('TokenAdapter, paper', type='TokenAdapter', **PAPER),
    **_spans('TokenAdapter, max, residual', (0.3, 0.5), (5,), type='TokenAdapter', score='max'),
    **_spans('TokenAdapter, alternating, copy', (0.3, 0.5), (5,), type='TokenAdapter', restore='copy'),
    **_spans('GridPool', type='GridPool'),
    **_spans('GridPool, copy', (0.3, 0.5), (5,), type='GridPool', restore='copy'),
    **{f'ToMe sublayer {r}': dict(type='ToMe', r=r) for r in (0.1, 0.3, 0.5)},
    **{
        f'ToMe progressive{how} {r}': dict(type='ToMe', mode='progressive', r=r, restore=restore)
        for how, restore in (('', 'residual'), (', copy', 'copy'))
        for r in (20, 40, 60)
    },
    **{
        f'ALGM{how} {t}': dict(type='ALGM', threshold=t, restore=restore)
        for how, restore in (('', 'residual'), (', copy', 'copy'))
        for t in (0.98, 0.94, 0.88)
    },
    **{f'ALGM, released {t}': dict(type='ALGM', variant='released', threshold=t) for t in (0.98, 0.94, 0.88)},
    **{
        f'Expediting {start} {grid}': dict(type='Expediting', layer=start, grid=grid)
        for start in (5, 2)
        for grid in (0.8, 0.7, 0.5)
    },
    **{
        f'Expediting, copy 5 {grid}': dict(type='Expediting', layer=5, grid=grid, restore='copy') for grid in (0.7, 0.5)
    },
    **{
        f'EViT{how} {rate}': dict(type='EViT', keep_rate=rate, restore=restore)
        for how, restore in (('', 'residual'), (', copy', 'copy'), (', last', 'last'))
        for rate in (0.9, 0.7, 0.5)
    },
    **{
        f'Random {start} {ratio}': dict(type='Random', layer=start, ratio=ratio)
        for start in (5, 2)
        for ratio in (0.3, 0.5, 0.75)
    },
    **{f'Random, last 5 {ratio}': dict(type='Random', layer=5, ratio=ratio, restore='last') for ratio in (0.3, 0.5)},
}
