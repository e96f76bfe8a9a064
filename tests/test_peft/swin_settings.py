"""Settings of small Swins."""

NORMS = ('norm0.', 'norm1.')
TUNED = ('peft.', *NORMS)
TINY = dict(embed_dims=8, depths=(1, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), window_size=3)
RATES = dict(drop_rate=0.2, attn_drop_rate=0.2, drop_path_rate=0.3)
