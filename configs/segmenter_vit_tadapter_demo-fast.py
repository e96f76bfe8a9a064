# A quarter of the tokens from layer 2 on: the fewest that lost nothing on training scenes (docs/benchmarks.md).
_base_ = './segmenter_vit_demo.py'
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=0.5, layers=(2, 10))))
