"""Checkpoints of what was tuned, and a word on what that is."""

from mmengine.hooks import Hook
from mmengine.logging import print_log

from mmtr.errors import UserError
from mmtr.peft.freezing import frozen_backbones, table
from mmtr.registry import HOOKS
from mmtr.weights.tuned import check_pretrained, check_same_frozen, put_in_frozen, take_out_frozen

from .coverage import unwrap
from .order import put_first, put_last


@HOOKS.register_module()
class PEFTCheckpointHook(Hook):
    """Checkpoints without what a ``peft`` froze: the pretrained file has that. Logs what is trained at the start.

    Other hooks see whole checkpoints: a file is completed before they read it, and what is frozen leaves after they
    have written, whatever their priority. The tools add this one to every model with a ``peft``.

    Raises:
        UserError: The model has no ``peft``, or its backbone no pretrained file; while a checkpoint is loaded: see
            ``put_in_frozen`` and ``check_same_frozen``.
    """

    priority = 'HIGHEST'

    def __init__(self):
        self.last = _TakeOutFrozen()

    def before_run(self, runner):
        """Go to the head of the hooks, and the half that writes to their end."""
        put_first(runner, self)
        put_last(runner, self.last)

    def before_train(self, runner):
        """Check, and log how many parameters are trained."""
        model = unwrap(runner.model)
        if not any(frozen_backbones(model)):
            raise UserError(
                'PEFTCheckpointHook needs a model whose backbone has a peft: set model.backbone.peft, or '
                'take the hook out of custom_hooks.'
            )
        check_pretrained(model)
        print_log(f'Parameters:\n{table(model)}', 'current')

    def after_load_checkpoint(self, runner, checkpoint):
        """Put in the frozen weights; a whole checkpoint must bring the same ones where a run starts from it."""
        model, path = unwrap(runner.model), runner._load_from
        put_in_frozen(model, checkpoint, path)
        if runner._train_loop is not None:
            check_same_frozen(model, checkpoint, path)


class _TakeOutFrozen(Hook):
    priority = 'LOWEST'

    def before_save_checkpoint(self, runner, checkpoint):
        take_out_frozen(unwrap(runner.model), checkpoint)
