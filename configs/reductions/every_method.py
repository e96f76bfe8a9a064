# Every method at its defaults, and ToMe in both modes: 40 tokens a layer suit grids of 600 to 800 patches.
reductions = {
    'Token Adapter': dict(type='TokenAdapter'),
    'GridPool': dict(type='GridPool', ratio=0.3),
    'CubistMerge': dict(type='CubistMerge'),
    'MPM': dict(type='MPM'),
    'SegFormerPlusPlus': dict(type='SegFormerPlusPlus'),
    'ToMe': dict(type='ToMe'),
    'ToMe progressive': dict(type='ToMe', mode='progressive', r=40),
    'ALGM': dict(type='ALGM'),
    'Expediting': dict(type='Expediting'),
    'EViT': dict(type='EViT'),
    'Random': dict(type='Random'),
}
