# mmsegmentation's schedule for Segmenter: 8 GPUs with one image each.
_base_ = ['mmseg::_base_/default_runtime.py', 'mmseg::_base_/schedules/schedule_160k.py']
optimizer = dict(lr=0.001, weight_decay=0.0)
optim_wrapper = dict(optimizer=optimizer)
