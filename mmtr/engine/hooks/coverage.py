"""A hook that checks that checkpoints cover the model, and that training does not start from random layers."""

import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn

from mmtr.errors import UserError
from mmtr.registry import HOOKS
from mmtr.weights.fit import Fit, PretrainedWatch, backbones, left_random, part_of, prefix_in, start_from, uncovered
from mmtr.weights.tuned import put_in_frozen, weights_in
from mmtr.words import some

from .order import put_last


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside data-parallel and test-time-augmentation wrappers."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


@HOOKS.register_module()
class CheckpointCoverageHook(Hook):
    """Stops a run if a file does not cover the model that it is loaded into: mmengine would leave weights random.

    A checkpoint to test, or to resume from, must cover the model exactly. A file that training starts from
    (``load_from``, or ``init_cfg`` of a part) must fill all layers of a backbone, and at least one weight of any other
    part; the filled share is logged. The hook runs after all others, whatever their priority.

    Args:
        allow_partial: Warn instead of raising.

    Raises:
        UserError: Weights are missing, unexpected or of another shape; names some.
    """

    priority = 'LOWEST'

    def __init__(self, allow_partial: bool = False):
        self.allow_partial, self.watch = allow_partial, None

    def before_run(self, runner: Runner) -> None:
        """Make this the last hook; in a training, watch what the parts of the model load."""
        put_last(runner, self)
        if isinstance(runner._train_loop, BaseLoop):  # built by now in a training; a dict or None in a test
            self.watch = PretrainedWatch(unwrap(runner.model), allow_partial=self.allow_partial)

    def before_train(self, runner: Runner) -> None:
        """Stop watching: all files have been loaded."""
        if self.watch is not None:
            self.watch.close()

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the names and shapes of the checkpoint with the model's."""
        model = unwrap(runner.model)
        put_in_frozen(model, checkpoint, runner._load_from)
        state_dict = weights_in(checkpoint)
        if self.watch is not None:
            self.watch.close()
            if not runner._resume:
                self._check_start(model, state_dict, runner._load_from)
                return
        difference = uncovered(model, state_dict)
        if not difference:
            return
        text = f"Checkpoint '{runner._load_from}' does not cover the model: {difference}"
        if not {*state_dict} & {*model.state_dict()}:
            text += '; no name fits, so it is of another model, or one for tools/convert_checkpoint.py'
        self._say(text, 'tests' if self.watch is None else 'resumes from')

    def _check_start(self, model, state, path):
        fit, found = Fit(model, state), backbones(model)
        left = {name: left_random(backbone, part_of(state, name)) for name, backbone in found}
        if (fit.nothing or any(left.values())) and uncovered(model, state):
            names = [f'{name}.{each}' for name, each_left in left.items() for each in each_left]
            text = (
                f"load_from='{path}' would leave random weights in the model: it fills {fit.loaded()}, and not "
                f'{some(names or fit.missing)}'
            )
            for name, backbone in found:
                prefix = prefix_in(backbone, state) if left[name] else None
                if prefix is not None:
                    text += f'; model.{name}.{start_from(path, prefix)} starts the backbone from it'
            self._say(text, 'trains from')
            return
        absent = [*fit.missing, *fit.reshaped.values()]
        print_log(
            f"load_from='{path}' fills {fit.loaded()}" + (f'; not {some(absent)}.' if absent else '.'),
            'current',
            logging.WARNING if absent else logging.INFO,
        )

    def _say(self, text, does):
        if not self.allow_partial:
            raise UserError(f'{text}; --allow-partial {does} it nevertheless.')
        print_log(f'{text}.', 'current', logging.WARNING)
