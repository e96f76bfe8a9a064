"""Tell from its keys which source a file comes from."""

from collections.abc import Iterable
from typing import Optional

# A key -> the sources that read a file with it; of several, the first key counts.
LAYOUTS = {
    'network.class_head.weight': ('eomt',),
    'class_predictor.weight': ('eomt',),
    'cropr.0.cross_attn.queries': ('cropr',),
    'encoder.layers.layer_0.ln_1.weight': ('swag',),
    'encoder.layers.encoder_layer_0.ln_1.weight': ('torchvision_vit',),
    'encoder.blocks.0.norm1.weight': ('segmenter',),
    'Transformer/encoder_norm/scale': ('augreg_npz',),
    'backbone.blocks.0.adapter.down_proj.weight': ('dar',),
    'layers.0.blocks.0.norm1.weight': ('swin',),
    'backbone.net.blocks.0.norm1.weight': ('vitdet',),
    'image_encoder.blocks.0.norm1.weight': ('sam',),
    'sem_seg_head.predictor.decoder_norm.weight': ('maskdino',),
    'storage_tokens': ('dinov3',),
    'layer.0.attention.o_proj.weight': ('dinov3',),
    'model.layer.0.attention.o_proj.weight': ('dinov3',),
    'blocks.0.ls1.gamma': ('dinov2',),
    'reg_token': ('dinov3',),
    'blocks.0.mlp.fc1_g.weight': ('eva02', 'cropr'),
    'blocks.0.attn.q_bias': ('eva02', 'cropr'),
    'decoder_embed.weight': ('mae', 'vitdet'),
    'fc_norm.weight': ('mae', 'cropr'),
    'blocks.0.attn.qkv.bias': ('timm_vit', 'mae', 'cropr', 'vitdet'),
    # OpenMMLab's own.
    'layers.0.ln1.weight': (),
    'backbone.layers.0.ln1.weight': (),
}


def sources_of(keys: Iterable[str]) -> Optional[tuple[str, ...]]:
    """Name the sources that read a file with ``keys``; () if these are OpenMMLab's, None if the layout is unknown."""
    keys = set(keys)
    return next((sources for key, sources in LAYOUTS.items() if key in keys), None)
