# CubistMerge, MPM, SegFormer++ and ToMe with PiToMe's matching beside Token Adapter and GridPool, for CamVid.
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
    **{
        f'SegFormerPlusPlus ({preset}{"" if share is None else f", {share}"})': dict(
            type='SegFormerPlusPlus', preset=preset, share=share
        )
        for preset, share in (('hq', None), ('hq', 0.5), ('fast', None), ('2x2', None))
    },
    **{
        f'ToMe {matching}{how} {r}': dict(type='ToMe', mode='progressive', matching=matching, r=r, restore=restore)
        for matching, strengths in (('energy', (10, 20, 30, 40, 50, 60)), ('alternate', (20, 30, 40, 50, 60)))
        for how, restore in (('', 'residual'), (', copy', 'copy'))[: 1 + (matching == 'energy')]
        for r in strengths
    },
}
