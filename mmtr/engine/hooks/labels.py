"""Labels must be classes."""

from mmengine.hooks import Hook

from mmtr.checks.config import TWO_CLASSES
from mmtr.errors import UserError
from mmtr.registry import HOOKS

from .coverage import unwrap

#: What an image of so many channels is.
CHANNELS = {2: 'grey with alpha', 3: 'colour', 4: 'colour with alpha'}


@HOOKS.register_module()
class LabelCheckHook(Hook):
    """Checks the label maps of each batch before the model sees them; models without classes are left alone.

    Out of range, a label is an unreadable assertion on a GPU, and in evaluation it silently drops out.

    Raises:
        UserError: A label is neither in 0 ... num_classes - 1 nor the ignored one, or a pixel has several.
    """

    def _before_iter(self, runner, batch_idx, data_batch=None, mode='train'):
        model = unwrap(runner.model)
        head = getattr(model, 'decode_head', getattr(model, 'panoptic_head', None))
        head = head[-1] if hasattr(head, '__getitem__') else head  # a cascade
        num_classes = getattr(head, 'num_classes', None)
        if num_classes is None or not isinstance(data_batch, dict):
            return
        ignored = {getattr(head, 'ignore_index', 255)}
        if mode != 'train':
            evaluator = getattr(runner, f'{mode}_loop').evaluator
            ignored |= {getattr(metric, 'ignore_index', 255) for metric in evaluator.metrics}
        for sample in _flat(data_batch.get('data_samples', ())):
            if 'gt_sem_seg' in sample:
                labels = sample.gt_sem_seg.get('data', sample.gt_sem_seg.get('sem_seg'))  # of mmseg, of mmdet
                path = sample.get('seg_map_path', None) or sample.get('img_path', 'a label map')
                check_shape(labels.shape[labels.shape[0] == 1 :], path)
                check_labels(labels, num_classes, ignored, path, sample.get('reduce_zero_label', False))


def _flat(samples):
    for sample in samples:  # test-time augmentation nests them
        if isinstance(sample, (list, tuple)):
            yield from _flat(sample)
        else:
            yield sample


def check_shape(shape, path) -> None:
    """Raise a ``UserError`` if ``shape`` is not that of a label map, (H, W); ``path`` is its file."""
    if len(shape) != 2:
        what = CHANNELS.get(shape[-1], 'of an unknown kind')
        raise UserError(
            f"'{path}' has {shape[-1]} channels, it is an image ({what}) and no label map: write PNG files "
            'with one channel, in which the value of a pixel is the number of its class.'
        )


def check_labels(labels, num_classes, ignored, path, reduced) -> None:
    """Check that the labels of a map are classes.

    Args:
        labels: Tensor or array of any shape.
        num_classes: Of the model.
        ignored: Labels that are no class, and may be there.
        path: The file.
        reduced: Whether 1 was taken off every label in it.

    Raises:
        UserError: One is none, and what to set.
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
