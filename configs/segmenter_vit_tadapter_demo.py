_base_ = './segmenter_vit_demo.py'
# A tenth of the rows and columns is kept unmerged here, so that the pictures show all three groups of tokens.
model = dict(backbone=dict(token_reduction=dict(type='TokenAdapter', ratio=(0.3, 0.3), unique=(0.1, 0.1))))
