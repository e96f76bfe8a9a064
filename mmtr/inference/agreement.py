"""Find where two predictions for one image differ."""

from dataclasses import dataclass, field
from typing import Optional

import numpy as np
from mmengine.structures import BaseDataElement

from mmtr.errors import UserError

#: Kinds of prediction; the first one that a sample has is drawn and compared.
KINDS = ('pred_panoptic_seg', 'pred_instances', 'pred_sem_seg', 'pred_label')


@dataclass(frozen=True)
class Difference:
    """Difference of two predictions for one image.

    Args:
        pixels: Pixels that differ, (height, width) bool; (1, 1) for the class of a whole image.
        instances: Numbers of instances in the first prediction, in the second, and in both; None for a prediction
            without instances.
        unit: Plural noun for what has a class: ``pixels`` or ``images``.
    """

    pixels: np.ndarray
    instances: Optional[tuple[int, int, int]] = None
    unit: str = 'pixels'


@dataclass
class _Seen:
    """A prediction by pixel.

    Args:
        classes: Class of each pixel, -1 for none.
        numbers: Number of the instance of each pixel, from 1 on, 0 for none.
        labels: Class of each instance.
        masks: Mask of each instance, (height, width) bool.
    """

    classes: np.ndarray
    numbers: np.ndarray
    labels: list[int] = field(default_factory=list)
    masks: list[np.ndarray] = field(default_factory=list)


def shown(sample: BaseDataElement) -> str:
    """Return the kind of prediction, the first of ``KINDS``, in a data sample; raises ``UserError`` if it has none."""
    for kind in KINDS:
        if kind in sample:
            return kind
    raise UserError(f'The model predicts neither labels nor instances, but {", ".join(sample.keys()) or "nothing"}.')


def difference(first: BaseDataElement, second: BaseDataElement, score_thr: float = 0.3) -> Difference:
    """Compare two data samples, of mmseg, mmdet or mmpretrain, of one image.

    Two instances are the same if they have one class and their intersection over union is above 0.5, as in the
    panoptic quality. A pixel differs if its class differs, or if its instances are not the same. Where instances
    overlap, a pixel belongs to the one with the highest score.

    Args:
        first, second: Results of the model's ``test_step``.
        score_thr: Only instances above this score count. The mask of an instance without one is its box.
    """
    kind = shown(first)
    if kind == 'pred_label':
        differs = sorted(first.pred_label.tolist()) != sorted(second.pred_label.tolist())
        return Difference(np.array([[differs]]), unit='images')
    see = dict(pred_panoptic_seg=_segments, pred_instances=_instances, pred_sem_seg=_labels)[kind]
    one, other = (see(sample.get(kind).cpu(), sample, score_thr) for sample in (first, second))
    same = np.zeros((len(one.labels) + 1, len(other.labels) + 1), bool)
    same[0, 0] = True
    if one.labels and other.labels:
        same[1:, 1:] = (_iou(one.masks, other.masks) > 0.5) & np.equal.outer(one.labels, other.labels)
    pixels = (one.classes != other.classes) | ~same[one.numbers, other.numbers]
    if kind == 'pred_sem_seg':
        return Difference(pixels)
    return Difference(pixels, (len(one.labels), len(other.labels), _pairs(same[1:, 1:])))


def _labels(found, sample, score_thr):
    labels = (found.data if 'data' in found else found.sem_seg)[0].numpy()
    return _Seen(labels, np.zeros(labels.shape, int))


def _segments(found, sample, score_thr):
    from mmdet.evaluation import INSTANCE_OFFSET

    segments = found.sem_seg[0].numpy()
    seen = _Seen(segments % INSTANCE_OFFSET, np.zeros(segments.shape, int))
    for segment in np.unique(segments[segments >= INSTANCE_OFFSET]):
        _add(seen, int(segment % INSTANCE_OFFSET), segments == segment)
    return seen


def _instances(found, sample, score_thr):
    shape = tuple(sample.ori_shape[:2])
    seen = _Seen(np.full(shape, -1), np.zeros(shape, int))
    found = found[found.scores > score_thr]
    for i in found.scores.argsort().tolist():
        mask = found.masks[i].numpy().astype(bool) if 'masks' in found else _box(found.bboxes[i], shape)
        _add(seen, int(found.labels[i]), mask)
    return seen


def _add(seen, label, mask):
    seen.labels.append(label)
    seen.masks.append(mask)
    seen.classes[mask], seen.numbers[mask] = label, len(seen.labels)


def _box(box, shape):
    left, top, right, bottom = box.tolist()
    rows, columns = (np.arange(n) + 0.5 for n in shape)  # the middle of each pixel
    return ((rows > top) & (rows < bottom))[:, None] & ((columns > left) & (columns < right))


def _iou(masks, others):
    from mmdet.structures.mask import encode_mask_results
    from pycocotools.mask import iou

    return iou(encode_mask_results(masks), encode_mask_results(others), [False] * len(others))


def _pairs(same):
    """Largest number of pairs of same instances in which each instance occurs once."""
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    return int((maximum_bipartite_matching(csr_matrix(same)) >= 0).sum()) if same.size else 0
