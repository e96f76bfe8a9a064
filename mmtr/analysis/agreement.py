"""Where two predictions for one image differ."""
from dataclasses import dataclass
from typing import Optional

import numpy as np

from mmtr.errors import UserError

#: Kinds of prediction; of several, the first one that a sample has is drawn and compared.
KINDS = ('pred_panoptic_seg', 'pred_instances', 'pred_sem_seg')


@dataclass(frozen=True)
class Difference:
    """Of two predictions.

    Args:
        pixels: (height, width) bool, where they differ.
        instances: How many the first shows, the second, and both; None for a semantic prediction.
    """
    pixels: np.ndarray
    instances: Optional[tuple[int, int, int]]


def shown(sample) -> str:
    """Which of ``KINDS`` stands for the prediction in a data sample; raises ``UserError`` if it has none."""
    for kind in KINDS:
        if kind in sample:
            return kind
    raise UserError(f'The model predicts neither labels nor instances, but {", ".join(sample.keys()) or "nothing"}.')


def classes_and_instances(sample, score_thr: float) -> tuple[np.ndarray, np.ndarray]:
    """The class of each pixel, -1 where there is none, and the number of its instance, 0 where it is in none.

    Of instances that overlap, a pixel is in the one with the highest score; an instance without a mask is its box.

    Args:
        sample: mmseg ``SegDataSample`` or mmdet ``DetDataSample``.
        score_thr: Instances with no higher score are left out.
    """
    kind = shown(sample)
    found = sample.get(kind).cpu()
    if kind == 'pred_sem_seg':
        labels = (found.data if 'data' in found else found.sem_seg)[0].numpy()
        return labels, np.zeros_like(labels)
    if kind == 'pred_panoptic_seg':
        from mmdet.evaluation import INSTANCE_OFFSET
        segments = found.sem_seg[0].numpy()
        return segments % INSTANCE_OFFSET, segments // INSTANCE_OFFSET
    shape = tuple(sample.ori_shape[:2])
    classes, instances = np.full(shape, -1), np.zeros(shape, int)
    found = found[found.scores > score_thr]
    for number, i in enumerate(found.scores.argsort(), 1):
        inside = found.masks[i].numpy().astype(bool) if 'masks' in found else _box(found.bboxes[i], shape)
        classes[inside], instances[inside] = int(found.labels[i]), number
    return classes, instances


def _box(box, shape):
    left, top, right, bottom = box.tolist()
    rows, columns = (np.arange(n) + 0.5 for n in shape)  # the middle of each pixel
    return ((rows > top) & (rows < bottom))[:, None] & ((columns > left) & (columns < right))


def difference(first, second, score_thr: float = 0.3) -> Difference:
    """Where two data samples of one image differ, as ``classes_and_instances`` has them.

    A pixel differs if its classes differ, or if the two instances that it is in are not the same one: as in the
    panoptic quality, instances of one class are the same if their intersection over union is above 0.5.
    """
    (classes, instances), (other_classes, other_instances) = (
        classes_and_instances(sample, score_thr) for sample in (first, second))
    count, other_count = instances.max() + 1, other_instances.max() + 1
    pairs = instances * other_count + other_instances
    shared = np.bincount(pairs.reshape(-1), minlength=count * other_count).reshape(count, other_count)
    union = shared.sum(1, keepdims=True) + shared.sum(0, keepdims=True) - shared
    same = shared > union / 2
    same[0, 0] = True
    pixels = (classes != other_classes) | ~same[instances, other_instances]
    if shown(first) == 'pred_sem_seg':
        return Difference(pixels, None)
    seen = (instances[instances > 0], other_instances[other_instances > 0], pairs[~pixels & (instances > 0)])
    return Difference(pixels, tuple(len(np.unique(each)) for each in seen))
