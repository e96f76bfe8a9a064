_base_ = './segmenter_vit-l_pascal-context.py'
# Nothing is published for ViT-L on this data set: as on ADE20K.
model = dict(
    backbone=dict(token_reduction=dict(type='ALGM', variant='released', threshold=0.95, local_layer=1, global_layer=7))
)
