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
            "does not ask for: train it with type='mmtr.EncoderDecoder', 'mmtr.CascadeRCNN' or "
            f"'mmtr.MaskDINO' in place of the stock type{leave}."
        )
    outputs.setdefault(reducer, {})[name] = value


class Task:
    """Base class of auxiliary tasks: the loss of predictions (B, M, K) of M queries and K classes.

    Args:
        num_classes: Number of classes, K.
        grid: (H, W) of the patch grid of training images; M is H * W for dense tasks, else 1.
    """

    #: The field of a data sample that holds the annotation.
    field = ''
    loss_name = 'loss_ce'

    def __init__(self, num_classes: int, grid: Optional[tuple[int, int]]):
        self.num_classes, self.grid = num_classes, grid

    @property
    def num_queries(self) -> int:
        """The number of queries, M."""
        return 1

    def loss(self, logits: Tensor, data_samples: list) -> Tensor:
        """Compute the loss of one auxiliary head.

        Args:
            logits: (B, M, K) predictions.
            data_samples: Data samples of the batch, with annotations in ``field``.

        Raises:
            UserError: A data sample has no such annotation, or a label that is no class.
        """
        absent = next((sample for sample in data_samples if self.field not in sample), None)
        if absent is not None:
            raise UserError(
                f'token_reduction.task needs {self.field} in the training data, which have '
                f'{", ".join(absent.keys()) or "no annotation"}: choose the task that fits them.'
            )
        return self._loss(logits, [sample.get(self.field) for sample in data_samples])

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

    field = 'gt_sem_seg'
    #: Label of ignored pixels. ``ReductionLosses`` sets it to that of the decode head.
    ignore_index = 255

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

    field = 'gt_instances'
    loss_name = 'loss_bce'

    def _loss(self, logits, annotations):
        present = logits.new_zeros(len(logits), self.num_classes)
        for row, annotation in zip(present, annotations):
            row[self._checked(annotation.labels.to(logits.device))] = 1
        return F.binary_cross_entropy_with_logits(logits.squeeze(1).float(), present.float())


class Classification(Task):
    """Image classification: one query; cross-entropy with the label of the image."""

    field = 'gt_label'

    def _loss(self, logits, annotations):
        labels = torch.cat([label.view(1) for label in annotations]).to(logits.device)
        return F.cross_entropy(logits.squeeze(1), self._checked(labels))


TASKS = dict(semantic=Semantic, multilabel=MultiLabel, classification=Classification)
