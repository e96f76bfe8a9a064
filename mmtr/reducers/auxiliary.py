"""Auxiliary losses: collecting the outputs of reducers in a forward pass, and comparing them with annotations."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Optional

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtr.errors import UserError

_OUTPUTS = ContextVar('auxiliary outputs of reducers', default=None)


@contextmanager
def auxiliary_outputs() -> Iterator[dict[nn.Module, dict[str, Tensor]]]:
    """Collect the auxiliary outputs of reducers in training: a context that yields a dict, reducer -> name -> tensor.

    Outputs are stored on no module, and each thread has its own dict.
    """
    outputs: dict[nn.Module, dict[str, Tensor]] = {}
    before = _OUTPUTS.set(outputs)
    try:
        yield outputs
    finally:
        _OUTPUTS.reset(before)


def note_output(reducer: nn.Module, name: str, value: Tensor) -> None:
    """Put an auxiliary output of a reducer into the dict of ``auxiliary_outputs``.

    Args:
        reducer: Reducer whose output it is.
        name: Name of the output.
        value: Output.

    Raises:
        UserError: No ``auxiliary_outputs`` context is active: the model never computes the losses.
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
    """Base class of auxiliary tasks: the loss of predictions (B, M, K) of M queries and K classes.

    Args:
        num_classes: Number of classes, K.
        grid: (H, W) of the patch grid of training images; M is H * W for dense tasks, else 1.
    """

    #: The fields of a data sample that may hold the annotation; of those that are there, the first one does.
    fields: tuple[str, ...] = ()
    loss_name = 'loss_ce'

    def __init__(self, num_classes: int, grid: Optional[tuple[int, int]]):
        self.num_classes, self.grid = num_classes, grid

    @property
    def num_queries(self) -> int:
        """The number of queries, M."""
        return 1

    def follow(self, head: nn.Module) -> None:
        """Take from the main head, which may be None, what its loss is computed with."""

    def loss(self, logits: Tensor, data_samples: list) -> Tensor:
        """Compute the loss of one auxiliary head.

        Args:
            logits: (B, M, K) predictions.
            data_samples: Data samples of the batch, with annotations in one of ``fields``.

        Raises:
            UserError: A data sample has no such annotation, or a label that is no class.
        """
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
    """Semantic segmentation: one query a patch; cross-entropy with the label at the top left corner of each patch."""

    fields = ('gt_sem_seg',)
    #: Label of ignored pixels; that of the decode head, where there is one.
    ignore_index = 255

    def follow(self, head):
        """See ``Task``."""
        if getattr(head, 'ignore_index', None) is not None:
            self.ignore_index = head.ignore_index

    @property
    def num_queries(self) -> int:
        """The number of queries, one for each patch."""
        return self.grid[0] * self.grid[1]

    def _loss(self, logits, annotations):
        labels = torch.stack([annotation.data for annotation in annotations]).to(logits.device)
        labels = F.interpolate(labels.float(), self.grid, mode='nearest').flatten(1).long()
        self._checked(labels, [self.ignore_index])
        total = F.cross_entropy(logits.transpose(1, 2), labels, ignore_index=self.ignore_index, reduction='sum')
        return total / (labels != self.ignore_index).sum().clamp(min=1)


class MultiLabel(Task):
    """Multi-label classification: one query; binary cross-entropy with the classes of the boxes of an image."""

    fields = ('gt_instances',)
    loss_name = 'loss_bce'

    def _loss(self, logits, annotations):
        present = logits.new_zeros(len(logits), self.num_classes)
        for row, annotation in zip(present, annotations):
            row[self._checked(annotation.labels.to(logits.device))] = 1
        return F.binary_cross_entropy_with_logits(logits.squeeze(1).float(), present.float())


class Classification(Task):
    """Image classification: one query; the loss of the main head, or cross-entropy, with the label of the image.

    Mixup and CutMix mix the scores of an image and leave its label: where there are scores, these count.
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
