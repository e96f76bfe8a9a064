# Of the settings that are 1.4x as fast, the best on training scenes: "The demo" in docs/benchmarks.md.
_base_ = './segmenter_vit_demo.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=0.4, layers=(2, 10))))
