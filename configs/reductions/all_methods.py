# Every method at several strengths, for a backbone of any depth: what tools/compare.py --all compares.
# A line a method; a setting that a backbone cannot take is left out.
def _each(method, key, values, **settings):
    name = ' '.join([method, *(str(value) for value in settings.values())])
    return {f'{name} {value}': dict(type=method, **settings, **{key: value}) for value in values}


reductions = {
    **_each('TokenAdapter', 'ratio', (0.1, 0.2, 0.3, 0.4, 0.5)),
    **_each('TokenAdapter', 'ratio', (0.1, 0.2, 0.3, 0.4, 0.5), score='max', restore='copy'),  # the paper's
    **_each('GridPool', 'ratio', (0.1, 0.2, 0.3, 0.4, 0.5)),
    **_each('CubistMerge', 'ratio', (0.1, 0.2, 0.3, 0.4, 0.5)),
    **_each('CubistMerge', 'ratio', (0.1, 0.2, 0.3, 0.4, 0.5), merge='average'),
    **_each('SegFormerPlusPlus', 'share', (0.2, 0.4, 0.6, 0.8, 0.9)),
    **_each('MPM', 'layers', ((8,), (5,), (2,), (2, 5), (2, 5, 8))),
    **_each('ToMe', 'r', (0.1, 0.2, 0.3, 0.4, 0.5)),
    **_each('ToMe', 'r', (0.02, 0.04, 0.06, 0.1, 0.15), mode='progressive'),
    **_each('ToMe', 'r', (0.02, 0.04, 0.06, 0.1, 0.15), mode='progressive', matching='energy'),  # PiToMe's
    **_each('ALGM', 'threshold', (0.995, 0.98, 0.94, 0.88, 0.8)),
    **_each('Expediting', 'grid', (0.9, 0.8, 0.7, 0.6, 0.5)),
    **_each('EViT', 'keep_rate', (0.9, 0.8, 0.7, 0.6, 0.5)),
    **_each('Random', 'ratio', (0.2, 0.35, 0.5, 0.65, 0.8)),
}
