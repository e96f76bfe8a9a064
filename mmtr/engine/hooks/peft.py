"""A hook that writes checkpoints without frozen weights, and logs how many parameters are trained."""

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmtr.errors import UserError
from mmtr.peft.freezing import frozen_backbones, table
from mmtr.registry import HOOKS
from mmtr.weights.tuned import check_pretrained, check_same_frozen, put_in_frozen, take_out_frozen

from .coverage import unwrap
from .order import put_first, put_last


@HOOKS.register_module()
class PEFTCheckpointHook(Hook):
    """Leaves weights that a ``peft`` froze out of checkpoints: the pretrained file holds them.

    Logs how many parameters are trained. Other hooks see complete checkpoints, whatever their priority: this one
    completes a checkpoint before they read it, and removes the frozen weights after they have changed it. The tools
    add this hook to every model with a ``peft``.

    Raises:
        UserError: The model has no ``peft``, or its backbone has no pretrained file; while a checkpoint is loaded: see
            ``put_in_frozen`` and ``check_same_frozen``.
    """

    priority = 'HIGHEST'

    def __init__(self):
        self.last = _TakeOutFrozen()

    def before_run(self, runner: Runner) -> None:
        """Make the part that reads the first of all hooks, and the part that writes the last."""
        put_first(runner, self)
        put_last(runner, self.last)

    def before_train(self, runner: Runner) -> None:
        """Check the model, and log how many parameters are trained."""
        model = unwrap(runner.model)
        if not any(frozen_backbones(model)):
            raise UserError(
                'PEFTCheckpointHook needs a model whose backbone has a peft: set model.backbone.peft, or '
                'take the hook out of custom_hooks.'
            )
        check_pretrained(model)
        print_log(f'Parameters:\n{table(model)}', 'current')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Add the frozen weights to the checkpoint; in a training, a complete checkpoint must hold the same ones."""
        model, path = unwrap(runner.model), runner._load_from
        put_in_frozen(model, checkpoint, path)
        if runner._train_loop is not None:
            check_same_frozen(model, checkpoint, path)


class _TakeOutFrozen(Hook):
    priority = 'LOWEST'

    def before_save_checkpoint(self, runner, checkpoint):
        take_out_frozen(unwrap(runner.model), checkpoint)
