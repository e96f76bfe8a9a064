"""A hook that trains a model with a token reduction to agree with itself without it."""

import copy
import functools

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import MODELS
from mmengine.runner import Runner
from torch import nn

from mmtr.apis import apply_token_reduction
from mmtr.config.model import model_of
from mmtr.declared import Declared
from mmtr.errors import UserError
from mmtr.models.distillation import Healing
from mmtr.reducers.reduces import reduces
from mmtr.registry import HOOKS
from mmtr.settings import Flag, Maybe, Number, Text
from mmtr.weights.files import read_checkpoint
from mmtr.weights.fit import uncovered
from mmtr.weights.tuned import weights_in

from .coverage import unwrap

WEIGHT = Number(least=0, noun='a weight')
#: Key of a checkpoint's ``meta`` with the path of the teacher's weights.
META = 'healing_teacher'


@HOOKS.register_module()
class HealingHook(Declared, Hook):
    """Trains a model with a token reduction to agree with itself without it; see ``Healing`` for the losses.

    The teacher has the weights of ``load_from``, and the model of the config without ``token_reduction`` and ``peft``.
    It is built when training begins, in the same process, and stored in no checkpoint.

    Args:
        features: Weight of the loss between the outputs of the backbones.
        logits: Weight of the loss between the predictions.
        labels: Whether the losses of the model itself are added; otherwise no label is read, and any images do.
        teacher: Checkpoint of the teacher. None: ``load_from``, of which checkpoints keep the path; so it is needed
            only to resume a training after that file was moved.

    Raises:
        UserError: A setting cannot work, alone or with this model; the model reduces no tokens; there is no file of
            the teacher, or it does not cover the model, or is not what training starts from.
    """

    setting_prefix = 'HealingHook.'

    def __init__(
        self,
        features: WEIGHT = 1.0,
        logits: WEIGHT = 1.0,
        labels: Flag() = False,
        teacher: Maybe(Text('a checkpoint')) = None,
    ):
        if not features and not logits:
            raise UserError('HealingHook.features=0 and logits=0 compare nothing: set one of them above 0, such as 1.')
        self.features, self.logits, self.labels, self.teacher = features, logits, labels, teacher

    def before_run(self, runner: Runner) -> None:
        """Check the model, and note which file its training starts from."""
        self._start = self.teacher or (None if runner._resume else runner._load_from)
        reducers = [module for module in unwrap(runner.model).modules() if reduces(module)]
        if not reducers:
            raise UserError(
                'HealingHook trains a model to agree with itself without a token reduction, and this one has none: set '
                'model.backbone.token_reduction.'
            )
        learning = [reducer.name for reducer in reducers if hasattr(reducer, 'task')]
        if learning and not self.labels:
            raise UserError(f'HealingHook.labels=False, but {learning[0]} learns from labels: set labels=True.')

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Read the path of the teacher when training is resumed."""
        if runner._resume and self._start is None:
            self._start = (checkpoint.get('meta') or {}).get(META)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store the path of the teacher."""
        checkpoint['meta'][META] = self._start

    def before_train(self, runner: Runner) -> None:
        """Build the teacher, and let the model compute the losses with it."""
        model = unwrap(runner.model)
        if self._start is None:
            raise UserError(
                'HealingHook keeps what a trained model predicts, and there is none: set load_from to its checkpoint'
                + (', or teacher to that which this training started from.' if runner._resume else '.')
            )
        teacher = self._built(runner)
        self._load(teacher, model, resumed=runner._resume)
        like = next(model.parameters())
        self.healing = Healing(teacher.to(like.device), self.features, self.logits, self.labels)
        model.loss = functools.partial(self.healing.losses, model, model.loss)
        print_log(f"The model is healed: its teacher is '{self._start}' without a token reduction.", 'current')

    def after_train(self, runner: Runner) -> None:
        """Take the losses away."""
        del unwrap(runner.model).loss

    def _built(self, runner):
        cfg = copy.deepcopy(model_of(runner.cfg))
        if not cfg:
            raise UserError('HealingHook builds its teacher from the config, and this runner has none: use from_cfg.')
        for key in ('token_reduction', 'peft'):
            cfg['backbone'].pop(key, None)
        if 'distillation' in cfg:
            cfg['distillation'] = None
        return apply_token_reduction(MODELS.build(cfg), None)

    def _load(self, teacher: nn.Module, model: nn.Module, resumed: bool):
        state = weights_in(read_checkpoint(self._start, 'cpu'))
        state = {name: value for name, value in state.items() if not {'token_reducer', 'peft'} & {*name.split('.')}}
        difference = uncovered(teacher, state)
        if difference:
            raise UserError(
                f"'{self._start}' is not of the model that is healed: {difference}; give a checkpoint of this config "
                'without its token reduction.'
            )
        teacher.load_state_dict(state)
        own, loaded = model.state_dict(), teacher.state_dict()
        other = [n for n, value in loaded.items() if n in own and not torch.equal(value, own[n].to(value.device))]
        if other and not resumed:
            raise UserError(
                f"HealingHook.teacher='{self._start}' differs from what the model starts from in {len(other)} weights, "
                f'such as {other[0]}: a model can only be healed to agree with itself, so leave teacher out.'
            )
