"""A hook that raises the pruning rate during training."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmtr.declared import Declared
from mmtr.errors import UserError
from mmtr.reducers.pruning import PruneReducer
from mmtr.registry import HOOKS
from mmtr.settings import Flag, Number

from .coverage import unwrap


@HOOKS.register_module()
class PruningCurriculumHook(Declared, Hook):
    """Raises the share of ``r`` that is pruned in training linearly from 0 to 1; evaluation prunes at the full rate.

    The share depends only on the iteration or epoch, so a resumed run goes on like an uninterrupted one.

    Args:
        end: Share of training, above 0 and up to 1, after which the full rate is reached; the paper's is 0.5.
        by_epoch: Raise the rate with every epoch, as the paper does; False: with every iteration.

    Raises:
        UserError: A setting cannot work; the model has no reducer that prunes; or ``by_epoch`` is set and the loop
            counts iterations.
    """

    setting_prefix = 'PruningCurriculumHook.'

    def __init__(self, end: Number(above=0, most=1, noun='a share of training') = 0.5, by_epoch: Flag() = False):
        self.end, self.by_epoch = end, by_epoch

    def before_train(self, runner: Runner) -> None:
        """Check that the model prunes."""
        if not self._reducers(runner):
            raise UserError(
                'PruningCurriculumHook needs a model whose backbone prunes, such as token_reduction='
                "dict(type='Cropr'): set it, or take the hook out of custom_hooks."
            )
        if self.by_epoch and runner.max_epochs == 1:
            raise UserError(
                'PruningCurriculumHook.by_epoch=True, but training is one epoch or counts iterations: '
                'use by_epoch=False.'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the rate of all reducers that prune."""
        done = runner.epoch / runner.max_epochs if self.by_epoch else runner.iter / runner.max_iters
        for reducer in self._reducers(runner):
            reducer.rate = min(done / self.end, 1.0)

    @staticmethod
    def _reducers(runner):
        # Within windows, Random drops rows and columns once, whatever the rate.
        pruning = [module for module in unwrap(runner.model).modules() if isinstance(module, PruneReducer)]
        return [reducer for reducer in pruning if not reducer.backbone.needs_grid]
