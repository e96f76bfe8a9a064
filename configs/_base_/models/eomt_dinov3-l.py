# On DINOv3, with the random scale of positions that the release trains with.
_base_ = './eomt_dinov2-l.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='mmtr.DINOv3',
        patch_size=16,
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        hidden=4096,
        num_registers=4,
        rope_rescale=2.0,
    )
)
