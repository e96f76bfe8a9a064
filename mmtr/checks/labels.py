"""Check that the labels of a label map are classes of the model."""

from collections.abc import Collection, Sequence
from typing import Union

import numpy as np
from torch import Tensor

from mmtr.checks.model_config import TWO_CLASSES
from mmtr.errors import UserError

#: Kind of image by its number of channels.
CHANNELS = {2: 'grey with alpha', 3: 'colour', 4: 'colour with alpha'}


def check_shape(shape: Sequence[int], path: str) -> None:
    """Raise a ``UserError`` if the shape of the image in the file ``path`` is not that of a label map, (H, W)."""
    if len(shape) != 2:
        what = CHANNELS.get(shape[-1], 'of an unknown kind')
        raise UserError(
            f"'{path}' has {shape[-1]} channels, it is an image ({what}) and no label map: write PNG files "
            'with one channel, in which the value of a pixel is the number of its class.'
        )


def check_classes_of_images(labels: Union[Tensor, np.ndarray], num_classes: int, where: str) -> None:
    """Raise a ``UserError`` if a label of an image is no class.

    Args:
        labels: Labels of images, of any shape.
        num_classes: Number of classes of the model.
        where: The file of the labels, or of the image, for the error.
    """
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise UserError(
            f"'{where}' has the label {int(wrong.max())}, but labels must be 0 to {num_classes - 1}, for the "
            f'{num_classes} classes of the model: set num_classes of every head, and metainfo=dict(classes=...) of the '
            'data sets, to the classes that there are.'
        )


def check_labels(
    labels: Union[Tensor, np.ndarray], num_classes: int, ignored: Collection[int], path: str, reduced: bool
) -> None:
    """Check that the labels of a map are classes of the model.

    Args:
        labels: Labels as the model gets them, of any shape.
        num_classes: Number of classes of the model.
        ignored: Further labels that are allowed, such as 255 for 'ignored'.
        path: The file of the label map, for the error.
        reduced: Whether 1 was subtracted from every label (``reduce_zero_label``).

    Raises:
        UserError: A label is neither a class nor ignored; says what to set.
    """
    wrong = (labels < 0) | (labels >= num_classes)
    for value in ignored:
        wrong &= labels != value
    if not wrong.any():
        return
    label = int(labels[wrong].max())
    if num_classes == 1:
        hint = TWO_CLASSES
    elif label == 255:
        hint = (
            "255 is what mmsegmentation makes of the 0 of reduce_zero_label=True and of padding: leave the head's "
            'ignore_index at 255'
        )
    elif reduced:
        hint = 'reduce_zero_label took 1 off every label in the file; set it to False where the first class is 0'
    elif label == num_classes:
        hint = "set reduce_zero_label=True in the data set where 0 stands for 'no class'"
    else:
        hint = 'give model and data set the classes that there are, or the head the ignore_index that was meant'
    ignored = ' or '.join(map(str, sorted(ignored)))
    raise UserError(
        f"'{path}' holds the label {label}, but labels must be 0 to {num_classes - 1}, for the {num_classes} "
        f"classes of the model, or {ignored} for 'ignored'; {hint}."
    )
