# EoMT (tue-mps/eomt) on DINOv2 with registers, whose patches become 16 pixels wide; the last layers run with queries.
custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
model = dict(
    type='mmtr.EoMT',
    backbone=dict(type='mmtr.DINOv2', patch_size=16, num_registers=4, embed_dims=1024, num_layers=24, num_heads=16),
    panoptic_head=dict(type='mmtr.EoMTHead', in_channels=1024, num_query_layers=4),
)
