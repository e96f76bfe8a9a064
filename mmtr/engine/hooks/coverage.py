"""A checkpoint must cover the model that it is loaded into."""
import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper

from mmtr.errors import UserError
from mmtr.peft.checkpoint import put_in_frozen, weights_in
from mmtr.registry import HOOKS


def unwrap(model):
    """The model inside data-parallel and test-time-augmentation wrappers."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


def _named(count, what, names):
    return f'{count} {what} ({", ".join(names[:4])}{", ..." if count > 4 else ""})'


def coverage(model, state_dict):
    """How a state dict differs from the model's, in words; '' if it covers the model exactly."""
    have = {name: getattr(value, 'shape', None) for name, value in state_dict.items()}
    want = {name: getattr(value, 'shape', None) for name, value in model.state_dict().items()}
    counters = {name for name in {*have, *want} if name.endswith('num_batches_tracked')}
    missing = [name for name in want if name not in have and name not in counters]
    unexpected = [name for name in have if name not in want and name not in counters]
    reshaped = [f'{name}: {tuple(have[name])} in the file, {tuple(want[name])} in the model'
                for name in want if name in have and have[name] != want[name]]
    parts = [(missing, 'missing'), (unexpected, 'unexpected'), (reshaped, 'of another shape')]
    return ', '.join(_named(len(names), what, names) for names, what in parts if names)


def converts(model, state_dict):
    """Whether ``model`` loads a state dict with other names: some modules rename keys of older versions of themselves.

    Raises:
        UserError: A module of it knows what is wrong.
    """
    try:
        model.load_state_dict(state_dict)
    except RuntimeError:
        return False
    return True


@HOOKS.register_module()
class CheckpointCoverageHook(Hook):
    """Stops when the loaded checkpoint does not cover the model, where mmengine leaves random weights.

    Args:
        allow_partial: Warn, once, and go on.

    Raises:
        UserError: Names what is missing, unexpected or of another shape.
    """

    priority = 'LOWEST'  # after the hooks that complete or swap the weights

    def __init__(self, allow_partial=False):
        self.allow_partial = allow_partial

    def after_load_checkpoint(self, runner, checkpoint):
        """Compare names and shapes."""
        model = unwrap(runner.model)
        put_in_frozen(model, checkpoint, runner._load_from)
        state_dict = weights_in(checkpoint)
        difference = coverage(model, state_dict)
        if not difference or converts(model, state_dict):
            return
        text = f"Checkpoint '{runner._load_from}' does not cover the model: {difference}"
        if not {*state_dict} & {*model.state_dict()}:
            text += '; no name fits, so it is of another model, or one for tools/convert_checkpoint.py'
        if not self.allow_partial:
            raise UserError(f'{text}; --allow-partial tests it nevertheless.')
        print_log(f'{text}.', logger='current', level=logging.WARNING)
