"""Convert the encoder of a trained Segmenter ViT-T/16 to an mmtr.DINOv2 with 14x14 patches: ... IN OUT.

LayerScale is 1, so that the function stays the same; patch embedding and position table are resized. The small
runs of docs/benchmarks.md use the result as the pretrained model that they freeze.
"""

import sys

import torch

from mmtr.ops.resize import resize_patches, resize_positions
from mmtr.weights.files import read_checkpoint

source, target = sys.argv[1:]
state = read_checkpoint(source)['state_dict']
state = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
kernel = 'patch_embed.projection.weight'
state[kernel] = resize_patches(state[kernel], (14, 14))
state['patch_embed.projection.bias'] = torch.zeros(len(state[kernel]))
# The Segmenter was trained on crops of 288x384; a pretrained file has a square table.
state['pos_embed'] = resize_positions(state['pos_embed'], (18, 24), (16, 16), 1)
for i in range(12):
    for branch in ('attn.gamma1', 'ffn.gamma2'):
        state[f'layers.{i}.{branch}.weight'] = torch.ones(state['cls_token'].shape[-1])
torch.save(state, target)
