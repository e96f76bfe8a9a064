"""A schedule in which new heads learn before the pretrained backbone does; mmengine's treat all parameters alike."""

from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin

from mmtr.declared import Declared
from mmtr.errors import UserError
from mmtr.registry import PARAM_SCHEDULERS
from mmtr.settings import Flag, Listed, Number, Whole


@PARAM_SCHEDULERS.register_module()
class TwoStagePolyLR(Declared, LRSchedulerMixin, _ParamScheduler):
    """Warms up heads first and then the backbone, and lowers the learning rate of each to 0 polynomially (EoMT, A).

    Heads rise linearly from 0 for ``warmup[0]`` steps. The backbone has rate 0 for as long, and rises for ``warmup[1]``
    steps more. Behind its warm-up, each has (1 - progress)^power of its rate, until step ``end``. The rates follow from
    the step alone.

    Args:
        optimizer: Optimizer whose groups say whether they are ``in_backbone``, see ``LayerDecayConstructor``.
        end: Number of steps of the training, which a runner fills in.
        warmup: Steps of the warm-up of heads and of the backbone.
        power: Exponent.
        by_epoch: False; the schedule counts steps.
        last_step: mmengine's.

    Raises:
        UserError: A setting cannot work, or the groups do not say what they belong to.
    """

    setting_prefix = 'TwoStagePolyLR.'

    def __init__(
        self,
        optimizer: OptimWrapper,
        end: Whole(1, 10**9),
        warmup: Listed(Whole(0, 10**9), least=2, most=2) = (500, 1000),
        power: Number(above=0, most=100) = 0.9,
        by_epoch: Flag() = True,
        last_step: Whole(-1, 10**9) = -1,
    ):
        if by_epoch:
            raise UserError('TwoStagePolyLR.by_epoch=True must be False, set in param_scheduler: it counts steps.')
        if sum(warmup) >= end:
            raise UserError(f'TwoStagePolyLR.warmup={warmup} must be fewer than the {end} steps of the training.')
        if not any('in_backbone' in group for group in optimizer.param_groups):
            raise UserError(
                'TwoStagePolyLR cannot tell the backbone from heads: set '
                "optim_wrapper.constructor='mmtr.LayerDecayConstructor'."
            )
        self.warmup, self.power = warmup, power
        # mmengine appends a group of its own, which records the rate of the heads.
        self.in_backbone = [group.get('in_backbone', False) for group in optimizer.param_groups]
        super().__init__(optimizer, end=end, by_epoch=False, last_step=last_step)

    def _get_value(self):
        return [value * self._share(inside) for value, inside in zip(self.base_values, self.in_backbone)]

    def _share(self, inside):
        wait, rise = (self.warmup[0], self.warmup[1]) if inside else (0, self.warmup[0])
        step = self.last_step - wait
        if step < rise:
            return max(step, 0) / max(rise, 1)
        return (1 - (step - rise) / (self.end - wait - rise)) ** self.power
