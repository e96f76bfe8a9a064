"""Join the weights of one checkpoint and the Cropr modules of another: join_weights.py WEIGHTS HEADS OUT."""

import sys

import torch

from mmtr.weights.files import read_checkpoint

weights, heads = (read_checkpoint(path)['state_dict'] for path in sys.argv[1:3])
torch.save(
    dict(
        state_dict={
            **{name: value for name, value in weights.items() if 'token_reducer' not in name},
            **{name: value for name, value in heads.items() if 'token_reducer' in name},
        }
    ),
    sys.argv[3],
)
