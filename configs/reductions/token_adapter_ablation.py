# Tab. 4a-e and Fig. 6a-b of the Token Adapter paper on a model of 12 layers: one thing changed at a time.
def _adapter(**settings):
    return dict(type='TokenAdapter', **{**dict(ratio=0.3, score='max', restore='copy'), **settings})


reductions = {
    'ratio 0.3': _adapter(),
    **{f'ratio {r}': _adapter(ratio=r) for r in (0.1, 0.2, 0.4, 0.5)},
    **{f'unique {u}': _adapter(unique=u) for u in (0.05, 0.1, 0.2, 0.3, 0.5)},
    **{f'score {s}': _adapter(score=s) for s in ('sum', 'range', 'attn', 'random', 'alternating')},
    **{f'metric {m}': _adapter(metric=m) for m in ('dot', 'euclidean', 'manhattan')},
    **{f'reference {r}': _adapter(reference=r) for r in ('reduced', 'representative_merged', 'representative')},
    **{f'merge {m}': _adapter(merge=m) for m in ('keep', 'max_pool', 'avg_pool', 'bilinear')},
    **{f'threshold {t}': _adapter(mode='threshold', tau=t) for t in (0.9, 0.95, 0.98, 0.99, 0.995, 0.999)},
    **{
        f'layers ({a}, {b})': _adapter(layers=(a, b))
        for a, b in ((1, 12), (2, 12), (3, 12), (4, 12), (6, 12), (7, 12), (8, 12), (4, 11), (5, 10))
    },
    'per layer 1 row': dict(type='TokenAdapter', per_layer=(1, 0), layers=(0, 12), score='max', restore='copy'),
}
