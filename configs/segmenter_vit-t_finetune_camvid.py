# A trained plain model, trained on: the twin that a model trained on with token reduction is compared with. It starts
# from --cfg-options load_from=work_dirs/segmenter_vit-t_camvid/iter_5000.pth
_base_ = './segmenter_vit-t_camvid.py'
iterations = 2000
train_cfg = dict(max_iters=iterations)
# The norm of all gradients is not clipped: those of auxiliary heads would shrink the model's.
optim_wrapper = dict(optimizer=dict(lr=2e-4), clip_grad=None)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=100),
    dict(type='PolyLR', power=0.9, eta_min=0.0, by_epoch=False, begin=100, end=iterations),
]
