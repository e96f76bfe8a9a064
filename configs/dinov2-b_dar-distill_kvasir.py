_base_ = './dinov2-b_dar_kvasir.py'
model = dict(type='mmtr.DistillationEncoderDecoder', distillation=dict(loss_weight=0.1))
