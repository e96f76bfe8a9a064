"""A hook that raises the reduction during training."""

from typing import Any, Optional

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import nn

from mmtr.declared import Declared
from mmtr.errors import UserError
from mmtr.reducers.reduces import reduces
from mmtr.registry import HOOKS
from mmtr.settings import Flag, Maybe, Number, Whole

from .coverage import unwrap


@HOOKS.register_module()
class ReductionCurriculumHook(Declared, Hook):
    """Raises the reduction in training linearly from nothing to what is configured, which evaluation always has.

    Of methods that prune, Cropr and Random, the share of ``r`` rises with every iteration. For any other, its numbers
    are interpolated in steps between those that reduce nothing and the configured ones; layers stay as they are. Only
    within an iteration of training the model has the reducer of such a step. The share depends only on the iteration
    or epoch, so a resumed run goes on like an uninterrupted one.

    Args:
        end: Share of training, above 0 and up to 1, after which the full reduction is reached; Cropr's paper has 0.5.
        by_epoch: Raise the reduction with every epoch, as that paper does; False: with every iteration.
        steps: Number of steps in which the numbers of a method rise. None: 20; methods that prune have no steps.

    Raises:
        UserError: A setting cannot work; the model has no reducer, or one whose reduction cannot rise; ``by_epoch`` is
            set and the loop counts iterations; or ``steps`` is given and all reducers prune.
    """

    setting_prefix = 'ReductionCurriculumHook.'

    def __init__(
        self,
        end: Number(above=0, most=1, noun='a share of training') = 0.5,
        by_epoch: Flag() = False,
        steps: Maybe(Whole(1, 1000)) = None,
    ):
        self.end, self.by_epoch, self.steps = end, by_epoch, steps
        self._rising = []

    def before_train(self, runner: Runner) -> None:
        """Check the model, and build the reducers of all steps, so that none fails in the middle of the training."""
        self.after_train_iter(runner, 0)  # an iteration of an earlier training may have failed
        owners = self._owners(runner)
        if not owners:
            raise UserError(
                'ReductionCurriculumHook needs a model that reduces tokens, such as backbone.token_reduction='
                "dict(type='Cropr'): set it, or take the hook out of custom_hooks."
            )
        if self.by_epoch and runner.max_epochs == 1:
            raise UserError(
                'ReductionCurriculumHook.by_epoch=True, but training is one epoch or counts iterations: '
                'use by_epoch=False.'
            )
        self._rising = [_Rising(owner, self.steps or 20) for owner in owners if owner.token_reducer.rate is None]
        if self.steps is not None and not self._rising:
            raise UserError(
                f'ReductionCurriculumHook.steps={self.steps} has no effect on methods that prune, whose share rises '
                'with every iteration: leave it out.'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the rate of all reducers that prune, and put in the reducers of this step for the others."""
        done = runner.epoch / runner.max_epochs if self.by_epoch else runner.iter / runner.max_iters
        share = min(done / self.end, 1.0)
        for owner in self._owners(runner):
            if owner.token_reducer.rate is not None:
                owner.token_reducer.rate = share
        for rising in self._rising:
            rising.put_in(share)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Optional[dict] = None
    ) -> None:
        """Put the configured reducers back, for validation, checkpoints and all else."""
        for rising in self._rising:
            rising.put_in(1.0)

    @staticmethod
    def _owners(runner):
        """Backbones and heads with a reducer that reduces."""
        return [m for m in unwrap(runner.model).modules() if reduces(getattr(m, 'token_reducer', None))]


class _Rising:
    """The reducers of all steps of a backbone or head, ``owner``, from nothing to the one that it has now."""

    def __init__(self, owner: nn.Module, steps: int):
        self.owner, self.levels = owner, []
        for k in range(steps):
            level = owner.token_reducer.at_share(k / steps)
            # The same one where counts are as before, so that a compiled model is not compiled anew.
            same = self.levels and self.levels[-1].cfg == level.cfg
            self.levels.append(self.levels[-1] if same else level)
        self.levels.append(owner.token_reducer)

    def put_in(self, share: float) -> None:
        """Give the owner the reducer of a share; of 1, the configured one."""
        # The sum of shares that a float holds may be a hair too small.
        self.owner.token_reducer = self.levels[int(share * (len(self.levels) - 1) + 1e-9)]
