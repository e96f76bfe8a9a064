"""Training draws the same numbers at the same iteration; what loads data in this process draws on."""

import random
from types import SimpleNamespace

import numpy as np
import torch

from mmtr.engine.hooks import IterationSeedHook


def drawn():
    return torch.rand(()).item(), np.random.rand(), random.random()


def step(hook, iteration):
    """What a model draws in an iteration, such as Mixup with numpy."""
    runner = SimpleNamespace(iter=iteration, seed=3)
    hook.before_train_iter(runner, 0)
    found = drawn()
    hook.after_train_iter(runner, 0)
    return found


def test_a_run_that_resumes_draws_what_the_uninterrupted_one_did():
    one = [step(IterationSeedHook(), i) for i in range(4)]
    np.random.seed(99)
    random.seed(99)
    torch.manual_seed(99)
    assert [step(IterationSeedHook(), i) for i in (2, 3)] == one[2:]
    assert all(len(set(each)) == 4 for each in zip(*one))


def test_the_data_draw_as_if_no_iteration_were_between():
    def data(hook):
        np.random.seed(0)
        random.seed(0)
        found = []
        for i in range(3):
            found.append((np.random.rand(), random.random()))
            if hook is not None:
                step(hook, i)
        return found

    assert data(IterationSeedHook()) == data(None)
