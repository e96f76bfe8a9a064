"""Pruning that sets in slowly."""

from mmengine.hooks import Hook

from mmtr.declared import Declared
from mmtr.errors import UserError
from mmtr.reducers.pruning import PruneReducer
from mmtr.registry import HOOKS
from mmtr.settings import Flag, Number

from .coverage import unwrap


@HOOKS.register_module()
class PruningCurriculumHook(Declared, Hook):
    """The share of ``r`` that leaves in training rises from 0 to 1, linearly; evaluation prunes at the full rate.

    It depends on the iteration or epoch alone, so that a resumed run goes on as an uninterrupted one.

    Args:
        end: The share of training after which it is 1, as the paper's first half.
        by_epoch: Whether it rises from epoch to epoch, as the paper's, or with every iteration.

    Raises:
        UserError: A setting cannot work; the model has no reducer that prunes; ``by_epoch`` with a loop that
            counts iterations.
    """

    setting_prefix = 'PruningCurriculumHook.'

    def __init__(self, end: Number(above=0, most=1, noun='a share of training') = 0.5, by_epoch: Flag() = False):
        self.end, self.by_epoch = end, by_epoch

    def before_train(self, runner):
        """Check that there is something to set."""
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

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Set the rate."""
        done = runner.epoch / runner.max_epochs if self.by_epoch else runner.iter / runner.max_iters
        for reducer in self._reducers(runner):
            reducer.rate = min(done / self.end, 1.0)

    @staticmethod
    def _reducers(runner):
        return [module for module in unwrap(runner.model).modules() if isinstance(module, PruneReducer)]
