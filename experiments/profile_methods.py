"""Profile a forward pass of ViT-T at 480x360 with each method, by operator."""

import torch
from torch.profiler import ProfilerActivity, profile

from mmtr.models.backbones import VisionTransformer

METHODS = [
    None,
    dict(type='ToMe', r=0.3),
    dict(type='ToMe', mode='progressive', r=40),
    dict(type='EViT'),
    dict(type='Expediting'),
    dict(type='TokenAdapter'),
    dict(type='GridPool', ratio=0.3),
]
# Operators of the layers without any reduction; all others are the method's own.
LAYERS = (
    'addmm',
    '_scaled_dot_product_flash_attention_for_cpu',
    'gelu',
    'native_layer_norm',
    'mkldnn_convolution',
    'add',
)

torch.manual_seed(0)
model = VisionTransformer(img_size=(368, 480), embed_dims=192, num_layers=12, num_heads=3, final_norm=True).eval()
image = torch.randn(1, 3, 360, 480)
for method in METHODS:
    model.set_token_reduction(method)
    with torch.inference_mode():
        for _ in range(3):
            model(image)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in range(20):
                model(image)
    events = sorted(profiler.key_averages(), key=lambda event: -event.self_cpu_time_total)
    total = sum(event.self_cpu_time_total for event in events)
    own = [event for event in events if event.key.removeprefix('aten::') not in LAYERS]
    parts = ', '.join(
        f'{event.key.removeprefix("aten::")} {event.self_cpu_time_total / total:.1%}' for event in own[:6]
    )
    share = sum(event.self_cpu_time_total for event in own) / total
    print(f'{method}: {total / 20e3:.1f} ms, {share:.1%} not in products, attention, GELU and norms of layers: {parts}')
