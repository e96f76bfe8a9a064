"""A checkpoint must cover the model that it is loaded into, and what training starts from its layers."""

import logging

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import BaseLoop

from mmtr.errors import UserError
from mmtr.registry import HOOKS
from mmtr.weights.fit import Fit, PretrainedWatch, backbones, left_random, part_of, prefix_in, start_from, uncovered
from mmtr.weights.tuned import put_in_frozen, weights_in
from mmtr.words import some

from .order import put_last


def unwrap(model):
    """The model inside data-parallel and test-time-augmentation wrappers."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.module
    return model


@HOOKS.register_module()
class CheckpointCoverageHook(Hook):
    """Stops when a file does not cover what it is loaded into, where mmengine leaves random weights.

    A checkpoint to test, or to resume from, must cover the model exactly. What training starts from (``load_from``, and
    ``init_cfg`` of any part) must fill the layers of a backbone, and something of any other part; how much it
    filled is logged. It looks when all other hooks have had their turn, whatever their priority.

    Args:
        allow_partial: Warn, once, and go on.

    Raises:
        UserError: Names what is missing, unexpected or of another shape.
    """

    priority = 'LOWEST'

    def __init__(self, allow_partial=False):
        self.allow_partial, self.watch = allow_partial, None

    def before_run(self, runner):
        """Go to the end of the hooks; where the run is a training, look at what its parts start from."""
        put_last(runner, self)
        if isinstance(runner._train_loop, BaseLoop):  # built by then if the run is a training
            self.watch = PretrainedWatch(unwrap(runner.model), allow_partial=self.allow_partial)

    def before_train(self, runner):
        """All that is loaded has been."""
        if self.watch is not None:
            self.watch.close()

    def after_load_checkpoint(self, runner, checkpoint):
        """Compare names and shapes."""
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
