# CubistMerge and MPM beside Token Adapter and GridPool as set here, on 12 layers, for CamVid.
def _spans(name, ratios=(0.2, 0.3, 0.4, 0.5), starts=(5, 2), **settings):
    return {
        f'{name} ({start}, 12) {ratio}': dict(layers=(start, 12), ratio=ratio, **settings)
        for start in starts
        for ratio in ratios
    }


reductions = {
    **_spans('TokenAdapter', type='TokenAdapter'),
    **_spans('GridPool', type='GridPool'),
    **_spans('CubistMerge', type='CubistMerge'),
    **_spans('CubistMerge, average', type='CubistMerge', merge='average'),
    **_spans('CubistMerge, euclidean', (0.3, 0.5), (5,), type='CubistMerge', metric='euclidean'),
    **_spans('CubistMerge, copy', (0.3, 0.5), (5,), type='CubistMerge', restore='copy'),
    **_spans('CubistMerge, average, copy', (0.3, 0.5), (5,), type='CubistMerge', merge='average', restore='copy'),
    **{
        f'MPM{how} {layers}': dict(type='MPM', layers=layers, restore=restore)
        for how, restore in (('', 'residual'), (', copy', 'copy'))
        for layers in ((5,), (2, 5), (2, 5, 8))
    },
}
