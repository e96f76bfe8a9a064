"""A hook that makes random numbers the same at the same iteration, also in a resumed run."""

from typing import Any

import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmtr.registry import HOOKS


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds torch before each training iteration from (seed, iteration, rank).

    mmengine's checkpoints hold no generator state, so dropout and stochastic depth would draw
    other numbers after ``--resume`` than in an uninterrupted run.
    """

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed torch for the iteration."""
        step = runner.iter * get_world_size() + get_rank()
        torch.manual_seed((runner.seed * 1_000_003 + step) % 2**32)
