"""The same random numbers at the same iteration, however training got there."""

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook

from mmtr.registry import HOOKS


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds torch before each training iteration from (seed, iteration, rank).

    mmengine keeps no generator state in its checkpoints, so that dropout and stochastic depth would draw
    other numbers after ``--resume`` than in an uninterrupted run.
    """

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Seed."""
        step = runner.iter * get_world_size() + get_rank()
        torch.manual_seed((runner.seed * 1_000_003 + step) % 2**32)
