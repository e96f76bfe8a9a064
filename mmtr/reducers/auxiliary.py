"""From a forward pass to auxiliary losses: what a reducer notes, and how it is compared with the annotations."""

from contextlib import contextmanager
from contextvars import ContextVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtr.errors import UserError

_OUTPUTS = ContextVar('auxiliary outputs of reducers', default=None)


@contextmanager
def auxiliary_outputs():
    """Context that yields a dict, filled by the reducers that are trained inside: reducer -> name -> tensor.

    So nothing stays on a module, and each thread sees its own.
    """
    outputs: dict[nn.Module, dict[str, Tensor]] = {}
    before = _OUTPUTS.set(outputs)
    try:
        yield outputs
    finally:
        _OUTPUTS.reset(before)


def note_output(reducer: nn.Module, name: str, value: Tensor) -> None:
    """Put an output of ``reducer`` into the dict of ``auxiliary_outputs``.

    Raises:
        UserError: There is none: the model would never ask for the losses.
    """
    outputs = _OUTPUTS.get()
    if outputs is None:
        leave = ', or set token_reduction.deploy=True to leave it as it is' if hasattr(reducer, 'deploy') else ''
        raise UserError(
            'The token_reduction of this model learns from losses of its own, which a model of this type '
            "does not ask for: train it with type='mmtr.EncoderDecoder', 'mmtr.CascadeRCNN', 'mmtr.MaskDINO' or "
            f"'mmtr.ImageClassifier' in place of the stock type{leave}."
        )
    outputs.setdefault(reducer, {})[name] = value


class Task:
    """How auxiliary predictions (B, M, K), M queries and K classes, are compared with annotations.

    Args:
        num_classes: K.
        grid: (H, W) of the patch grid of training images; M is its size for dense tasks, else 1.
    """

    #: The fields of a data sample that may hold the annotation; of those that are there, the first one does.
    fields: tuple[str, ...] = ()
    loss_name = 'loss_ce'

    def __init__(self, num_classes, grid):
        self.num_classes, self.grid = num_classes, grid

    @property
    def num_queries(self):
        """M."""
        return 1

    def follow(self, head: nn.Module) -> None:
        """Take from the main head, which may be None, what its loss is computed with."""

    def loss(self, logits: Tensor, data_samples: list) -> Tensor:
        """Of one module: (B, M, K) -> scalar."""
        for field in self.fields:
            if all(field in sample for sample in data_samples):
                return self._loss(logits, [sample.get(field) for sample in data_samples])
        absent = next(sample for sample in data_samples if self.fields[-1] not in sample)
        raise UserError(
            f'token_reduction.task needs {self.fields[-1]} in the training data, which have '
            f'{", ".join(absent.keys()) or "no annotation"}: choose the task that fits them.'
        )

    def _checked(self, labels, ignored=()):
        wrong = (labels < 0) | (labels >= self.num_classes)
        for label in ignored:
            wrong &= labels != label
        if wrong.any():
            also = ''.join(f', or {label} for what is ignored' for label in ignored)
            raise UserError(
                f'token_reduction.num_classes={self.num_classes}, but the training data hold the label '
                f'{int(labels[wrong].max())}: labels must be 0 to {self.num_classes - 1}{also}.'
            )
        return labels


class Semantic(Task):
    """One query a patch of the training grid; cross-entropy with the labels, taken at the corner of each patch."""

    fields = ('gt_sem_seg',)
    #: The label that is no class.
    ignore_index = 255

    def follow(self, head):
        """See ``Task``."""
        if getattr(head, 'ignore_index', None) is not None:
            self.ignore_index = head.ignore_index

    @property
    def num_queries(self):
        """M."""
        return self.grid[0] * self.grid[1]

    def _loss(self, logits, annotations):
        labels = torch.stack([annotation.data for annotation in annotations]).to(logits.device)
        labels = F.interpolate(labels.float(), self.grid, mode='nearest').flatten(1).long()
        self._checked(labels, [self.ignore_index])
        total = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=self.ignore_index, reduction='sum')
        return total / (labels != self.ignore_index).sum().clamp(min=1)


class MultiLabel(Task):
    """One query; binary cross-entropy with which classes the boxes of an image have."""

    fields = ('gt_instances',)
    loss_name = 'loss_bce'

    def _loss(self, logits, annotations):
        present = logits.new_zeros(len(logits), self.num_classes)
        for row, annotation in zip(present, annotations):
            row[self._checked(annotation.labels.to(logits.device))] = 1
        return F.binary_cross_entropy_with_logits(logits.squeeze(1).float(), present.float())


class Classification(Task):
    """One query; the loss of the head with the label of the image, or with its scores, which Mixup and CutMix mix.

    Without a head that has one: cross-entropy.
    """

    fields = ('gt_score', 'gt_label')
    loss_module = None

    def follow(self, head):
        """See ``Task``."""
        self.loss_module = getattr(head, 'loss_module', None)

    def _loss(self, logits, annotations):
        logits, target = logits.squeeze(1), self._target(annotations).to(logits.device)
        if self.loss_module is None:
            return F.cross_entropy(logits, target)
        return self.loss_module(logits, target, avg_factor=len(logits))

    def _target(self, annotations):
        counts = {annotation.numel() for annotation in annotations}
        if counts == {1}:
            return self._checked(torch.cat([label.view(1) for label in annotations]))
        if counts == {self.num_classes}:
            return torch.stack(annotations)
        raise UserError(
            f"token_reduction.task='classification' with num_classes={self.num_classes} needs a label or "
            f'{self.num_classes} scores for each image, and the training data have {max(counts)}.'
        )


TASKS = dict(semantic=Semantic, multilabel=MultiLabel, classification=Classification)
