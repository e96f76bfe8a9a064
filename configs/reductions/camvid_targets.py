# Settings for CamVid that docs/benchmarks.md names: no loss, and at most one point at three times the encoder's speed.
reductions = {
    'TokenAdapter (5, 12) 0.3': dict(type='TokenAdapter', ratio=0.3),
    'TokenAdapter (2, 12) 0.3': dict(type='TokenAdapter', layers=(2, 12), ratio=0.3),
    'GridPool (2, 12) 0.6': dict(type='GridPool', layers=(2, 12), ratio=0.6),
    'GridPool (2, 12) 0.62': dict(type='GridPool', layers=(2, 12), ratio=0.62),
}
