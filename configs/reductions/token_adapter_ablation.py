# Tab. 4a-e and Fig. 6a-b of the Token Adapter paper, around its choice: one thing changed at a time.
def _adapter(**settings):
    return dict(type='TokenAdapter', **{**dict(ratio=0.3, mode='max'), **settings})


reductions = {
    'max': _adapter(),
    **{f'tau {t}': _adapter(mode='threshold', tau=t) for t in (0.8, 0.85, 0.9, 0.95, 0.98, 0.99)},
    **{f'ratio {r}': _adapter(ratio=r) for r in (0.1, 0.2, 0.4, 0.5)},
    **{f'unique {u}': _adapter(unique=u) for u in (0.05, 0.1, 0.2, 0.3, 0.5)},
    **{f'score {s}': _adapter(score=s) for s in ('sum', 'range', 'attn', 'random', 'alternating')},
    **{f'metric {m}': _adapter(metric=m) for m in ('dot', 'euclidean', 'manhattan')},
    **{f'reference {r}': _adapter(reference=r) for r in ('reduced', 'representative_merged', 'representative')},
    **{f'merge {m}': _adapter(merge=m) for m in ('keep', 'max_pool', 'avg_pool', 'bilinear')},
    **{f'layers {a}-12': _adapter(layers=(a, 12)) for a in (1, 2, 3, 4, 6, 7, 8)},
    'layers 4-11': _adapter(layers=(4, 11)),
    'layers 5-10': _adapter(layers=(5, 10)),
}
