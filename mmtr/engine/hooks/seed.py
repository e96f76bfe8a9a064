"""The same random numbers at the same iteration, however training got there."""

import random

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook

from mmtr.registry import HOOKS


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds torch, numpy and Python before each training iteration from (seed, iteration, rank).

    mmengine keeps no generator state in its checkpoints, so that dropout, stochastic depth and Mixup would draw
    other numbers after ``--resume`` than in an uninterrupted run. What loads data in this process draws from numpy and
    Python too, between the iterations; it goes on where it was, as a run that resumes loads again what was loaded.
    """

    def __init__(self):
        self._before = None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Seed."""
        step = runner.iter * get_world_size() + get_rank()
        seed = (runner.seed * 1_000_003 + step) % 2**32
        self._before = np.random.get_state(), random.getstate()
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Give the data their generators back."""
        numpys, pythons = self._before
        np.random.set_state(numpys)
        random.setstate(pythons)
