_base_ = './segmenter_vit-s_ade20k.py'
model = dict(
    backbone=dict(token_reduction=dict(type='ALGM', variant='released', threshold=0.88, local_layer=1, global_layer=5))
)
