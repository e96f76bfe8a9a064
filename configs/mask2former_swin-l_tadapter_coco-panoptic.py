# mmdet's own config, reduced by the hook alone: 8x8 of the 12x12 tokens of each window of stage 3.
_base_ = 'mmdet::mask2former/mask2former_swin-l-p4-w12-384-in21k_16xb1-lsj-100e_coco-panoptic.py'
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
custom_hooks = [
    dict(
        type='mmtr.TokenReductionHook', token_reduction=dict(type='TokenAdapter', stage=3, ratio=1 / 3, layers=(6, 18))
    )
]
