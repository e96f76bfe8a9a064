"""One model's weights with the auxiliary heads of another one's Cropr: python ... WEIGHTS HEADS OUT."""

import sys

import torch

weights, heads = (torch.load(path, map_location='cpu', weights_only=False)['state_dict'] for path in sys.argv[1:3])
torch.save(
    dict(
        state_dict={
            **{name: value for name, value in weights.items() if 'token_reducer' not in name},
            **{name: value for name, value in heads.items() if 'token_reducer' in name},
        }
    ),
    sys.argv[3],
)
