"""A hook that takes EoMT's attention masks away during training."""

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmtr.declared import Declared
from mmtr.errors import UserError
from mmtr.registry import HOOKS
from mmtr.settings import Listed, Maybe, Number, Whole

from .coverage import unwrap

STEPS = Maybe(Listed(Whole(0, 10**9), least=1))


@HOOKS.register_module()
class MaskAnnealingHook(Declared, Hook):
    """Lets the probability that queries are masked fall from 1 to 0, one query layer after the other (EoMT, Sec. 3.3).

    Within its window of steps, a layer's probability is (1 - progress)^power; the layers' windows, each a sixth of the
    training, begin evenly spaced, the first one after a sixth of the training, the last one at four sixths. The
    probabilities depend only on the iteration, so a resumed run goes on like an uninterrupted one. Validation and tests
    use no masks.

    Args:
        power: Exponent.
        starts: First step of the window of each query layer; None: see above.
        ends: Step at which the probability of each query layer has become 0; None: see above.

    Raises:
        UserError: A setting cannot work; or the model has no head with query layers.
    """

    setting_prefix = 'MaskAnnealingHook.'

    def __init__(self, power: Number(above=0, most=100) = 0.9, starts: STEPS = None, ends: STEPS = None):
        if (
            (starts is None) != (ends is None)
            or starts
            and (len(starts) != len(ends) or any(start >= end for start, end in zip(starts, ends)))
        ):
            raise UserError(
                f'MaskAnnealingHook.starts={starts} and ends={ends} must be given together, one of each for every '
                'query layer, and each start before its end.'
            )
        self.power, self.starts, self.ends = power, starts, ends

    def before_train(self, runner: Runner) -> None:
        """Check that the model has query layers, as many as windows, and that the masks are gone when training ends."""
        heads = self._heads(runner)
        if not heads:
            raise UserError(
                'MaskAnnealingHook needs a model with the head of an EoMT: take the hook out of custom_hooks, or set '
                "panoptic_head=dict(type='mmtr.EoMTHead', ...)."
            )
        for head in heads:
            if self.starts and len(self.starts) != len(head.mask_probs):
                raise UserError(
                    f'MaskAnnealingHook.starts={self.starts} must be {len(head.mask_probs)} steps, one for each query '
                    'layer of the head (num_query_layers).'
                )
        if self.ends and max(self.ends) > runner.max_iters:
            raise UserError(
                f'MaskAnnealingHook.ends={self.ends} must be at most the {runner.max_iters} steps of the training, '
                'since tests use no masks.'
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set the probabilities of all query layers."""
        for head in self._heads(runner):
            windows = self._windows(len(head.mask_probs), runner.max_iters)
            for layer, (start, end) in enumerate(windows):
                left = (end - runner.iter) / (end - start)
                head.mask_probs[layer] = min(max(left, 0.0), 1.0) ** self.power

    def _windows(self, layers, steps):
        if self.starts:
            return zip(self.starts, self.ends)
        begins = [steps / 6 + layer * steps / 2 / max(layers - 1, 1) for layer in range(layers)]
        return [(begin, begin + steps / 6) for begin in begins]

    @staticmethod
    def _heads(runner):
        return [module for module in unwrap(runner.model).modules() if 'mask_probs' in module._buffers]
