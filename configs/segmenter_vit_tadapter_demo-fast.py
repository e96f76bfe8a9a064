# Half of the tokens from layer 2 on: the fewest at which nothing was lost on training scenes (docs/benchmarks.md).
_base_ = './segmenter_vit_demo.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=0.3, layers=(2, 10))))
