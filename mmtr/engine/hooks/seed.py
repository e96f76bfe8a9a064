"""A hook that makes random numbers the same at the same iteration, also in a resumed run."""

import random
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmtr.registry import HOOKS


@HOOKS.register_module()
class IterationSeedHook(Hook):
    """Seeds torch, numpy and Python before each training iteration from (seed, iteration, rank).

    mmengine's checkpoints hold no generator state, so dropout, stochastic depth and Mixup would draw
    other numbers after ``--resume`` than in an uninterrupted run. Data that are loaded in this process draw from numpy
    and Python too, between the iterations; these draws go on where they were, since a resumed run loads again what was
    loaded before.
    """

    def __init__(self):
        self._before = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Seed all generators for the iteration."""
        step = runner.iter * get_world_size() + get_rank()
        seed = (runner.seed * 1_000_003 + step) % 2**32
        self._before = np.random.get_state(), random.getstate()
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Restore the generators that the data draw from."""
        numpys, pythons = self._before
        np.random.set_state(numpys)
        random.setstate(pythons)
