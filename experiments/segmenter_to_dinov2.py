"""The encoder of a trained Segmenter ViT-T/16 as an mmtr.DINOv2 of patches of 14 pixels: python ... IN OUT.

LayerScale starts at 1, so that it is the same function; patch embedding and position table are resized. The small
runs of docs/benchmarks.md take it for the pretrained model that they freeze.
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
# Trained on crops of 288x384; the table of a pretrained file is square.
state['pos_embed'] = resize_positions(state['pos_embed'], (18, 24), (16, 16), 1)
for i in range(12):
    for branch in ('attn.gamma1', 'ffn.gamma2'):
        state[f'layers.{i}.{branch}.weight'] = torch.ones(state['cls_token'].shape[-1])
torch.save(state, target)
