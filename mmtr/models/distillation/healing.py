"""Healing: a model with a token reduction is trained to agree with itself without it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Callable, Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.models.backbones.common.open_outputs import OpenOutputs
from mmtr.models.backbones.common.reduced_outputs import ReducedOutputs
from mmtr.ops.nested import tensors
from mmtr.reducers.auxiliary import auxiliary_outputs

from .predictions import predictions
from .taught import Taught, outputs_of


class Healing(Taught):
    """Losses between a model with a token reduction and the same model without it, for the same images.

    ``loss_features`` is the ``relative_error`` of each output of the backbone, after tokens are restored.
    ``loss_logits`` is the ``divergence`` of the class logits of a segmentor or classifier, or the ``relative_error`` of
    each raw output of a detector's heads. The second stage of a detector is computed for the teacher's proposals. Heads
    run as in a test: without dropout, denoising and masks that only training has.

    Args:
        teacher: The model without a token reduction.
        features: Weight of ``loss_features``; 0: there is none.
        logits: Weight of ``loss_logits``; 0: there is none.
        labels: Whether the losses of the model itself, which need labels, are added.
    """

    def __init__(self, teacher: nn.Module, features: float, logits: float, labels: bool):
        super().__init__(teacher)
        self.features, self.logits, self.labels = features, logits, labels

    def losses(
        self, model: nn.Module, loss: Callable[[Tensor, list], dict[str, Tensor]], inputs: Tensor, data_samples: list
    ) -> dict[str, Tensor]:
        """Compute all losses of a training step.

        Args:
            model: The model that is healed.
            loss: Its own method ``loss``.
            inputs: (B, channels, height, width) normalised images.
            data_samples: Data samples of the batch; without ``labels``, only their metainfo is read.

        Raises:
            UserError: ``features`` is above 0, and the backbone does not return a map of all patches.
        """
        with torch.no_grad(), outputs_of(self.teacher.backbone) as aims:
            target, proposals = self._predict(self.teacher, inputs, data_samples)
        head = getattr(model, 'decode_head', None)
        with once(model, 'extract_feat'), once(head, 'forward'), auxiliary_outputs() as auxiliary:
            with outputs_of(model.backbone) as outputs:
                losses = dict(loss(inputs, data_samples)) if self.labels else {}
                with heads_in_eval(model):
                    found, _ = self._predict(model, inputs, data_samples, proposals)
        if not self.labels and hasattr(model, 'losses_of_reducers'):
            losses.update(model.losses_of_reducers(auxiliary, data_samples))
        if self.features:
            maps, aims = self._maps(outputs[0]), self._maps(aims[0])
            errors = [relative_error(each, aim) for each, aim in zip(maps, aims)]
            losses['healing.loss_features'] = self.features * sum(errors) / len(errors)
        if self.logits:
            losses['healing.loss_logits'] = self.logits * self._disagreement(found, target)
        return losses

    def _predict(self, model, inputs, data_samples, proposals=None):
        """Return the raw outputs of the heads, and the proposals that they are for; without ``logits``, run no head."""
        if self.logits:
            return predictions(model, inputs, data_samples, proposals)
        return model.extract_feat(inputs), None

    def _maps(self, outputs):
        if isinstance(outputs, (OpenOutputs, ReducedOutputs)):
            why = (
                'its last layers run in the head'
                if isinstance(outputs, OpenOutputs)
                else "its token_reduction has restore_at='after_head'"
            )
            raise UserError(
                f'HealingHook.features={self.features:g} compares maps of all patches, which this backbone does not '
                f'return, for {why}: set features=0, to compare what the heads predict alone.'
            )
        return tensors(outputs)

    def _disagreement(self, found, target):
        if isinstance(target, Tensor):
            return divergence(found, target)
        errors = [relative_error(each, aim) for each, aim in zip(tensors(found), tensors(target))]
        return sum(errors) / len(errors)


def relative_error(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error, in units of the teacher's variance in each channel, so that no scale matters.

    Args:
        student, teacher: (B, C, H, W) maps, whose channels have a variance each; of tensors of other ranks, the
            variance is that of all elements. Values of the teacher that are not finite are left out.
    """
    student, teacher = student.float(), teacher.float()
    finite = teacher.isfinite()
    aim = torch.where(finite, teacher, 0.0)
    axes = (0, 2, 3) if teacher.dim() == 4 else tuple(range(teacher.dim()))
    variance = aim.var(axes, unbiased=False, keepdim=True)
    error = torch.where(finite, student - aim, 0.0).square() / (variance + 1e-6)
    return error.sum() / finite.sum().clamp(min=1)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean KL divergence of the student's class probabilities from the teacher's.

    Args:
        student, teacher: (B, K, ...) logits; of a single class, those of a sigmoid.
    """
    student, teacher = student.float(), teacher.float()
    if teacher.shape[1] == 1:
        student, teacher = (torch.cat([each, torch.zeros_like(each)], 1) for each in (student, teacher))
    each = F.kl_div(student.log_softmax(1), teacher.log_softmax(1), reduction='none', log_target=True)
    return each.sum(1).mean()


@contextmanager
def once(owner: Optional[Any], name: str) -> Iterator[None]:
    """Let a method of an object, if it has it, compute once in the context: later calls return what the first did."""
    if not hasattr(owner, name):
        yield
        return
    method, before, found = getattr(owner, name), vars(owner).get(name), []

    def first(*args, **kwargs):
        if not found:
            found.append(method(*args, **kwargs))
        return found[0]

    setattr(owner, name, first)
    try:
        yield
    finally:
        delattr(owner, name) if before is None else setattr(owner, name, before)


@contextmanager
def heads_in_eval(model: nn.Module) -> Iterator[None]:
    """Put all parts of a model but its backbone in eval mode in the context."""
    parts = [child for name, child in model.named_children() if name != 'backbone']
    modules = [(module, module.training) for part in parts for module in part.modules()]
    try:
        for module, _ in modules:
            module.training = False
        yield
    finally:
        for module, mode in modules:
            module.training = mode
