# One class: the auxiliary heads learn whether a crop holds a nucleus at all.
_base_ = './cascade-mask-rcnn_eva02-t_nuclei.py'
model = dict(
    type='mmtr.CascadeRCNN',
    backbone=dict(
        # Windows need the whole grid: later layers attend to all patches that are left.
        window_layers=[0],
        token_reduction=dict(type='Cropr', task='multilabel', num_classes=1, layers=(1, 3, 5), r=[0.4, 0.25, 0.15]),
    ),
)
custom_hooks = [dict(type='mmtr.ReductionCurriculumHook')]
