# The paper's five stages. How many patches leave in each is not known to us: these shares meet the two figures that
# are reported, 97% of the patches gone after the last stage, and 1273 of 2790 GFLOPs without the attention products.
_base_ = './cascade-mask-rcnn_eva02-l_coco.py'
model = dict(
    type='mmtr.CascadeRCNN',
    backbone=dict(
        # Windows need the whole grid: later layers attend to all patches that are left.
        window_layers=[0, 1, 3, 4],
        token_reduction=dict(
            type='Cropr',
            task='multilabel',
            num_classes=80,
            layers=(5, 8, 11, 14, 20),
            r=[0.43, 0.248, 0.137, 0.08, 0.075],
            multiple_of=8,
        ),
    ),
)
custom_hooks = [dict(type='EMAHook', momentum=1e-4), dict(type='mmtr.ReductionCurriculumHook')]
