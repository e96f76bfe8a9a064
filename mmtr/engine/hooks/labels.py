"""A hook that checks that labels are classes of the model."""

from mmengine.hooks import Hook

from mmtr.checks.labels import check_classes_of_images, check_labels, check_shape
from mmtr.config.types import CLASSIFIER, derives
from mmtr.registry import HOOKS

from .coverage import unwrap


@HOOKS.register_module()
class LabelCheckHook(Hook):
    """Checks the labels of each batch before the model gets them, unless the model has no classes.

    They are label maps, or, for a classifier, labels of whole images. A label out of range gives an unreadable
    assertion on a GPU, and evaluation ignores it in silence.

    Raises:
        UserError: A label is neither in 0 ... num_classes - 1 nor, in a map, the ignored one, or a pixel has several.
    """

    def _before_iter(self, runner, batch_idx, data_batch=None, mode='train'):
        model = unwrap(runner.model)
        classifies = derives(type(model), CLASSIFIER)
        head = model.head if classifies else getattr(model, 'decode_head', getattr(model, 'panoptic_head', None))
        head = head[-1] if hasattr(head, '__getitem__') else head  # a cascade
        num_classes = getattr(head, 'num_classes', None)
        if num_classes is None or not isinstance(data_batch, dict):
            return
        ignored = {getattr(head, 'ignore_index', 255)}
        if mode != 'train':
            evaluator = getattr(runner, f'{mode}_loop').evaluator
            ignored |= {getattr(metric, 'ignore_index', 255) for metric in evaluator.metrics}
        for sample in _flat(data_batch.get('data_samples', ())):
            if classifies and 'gt_label' in sample:
                check_classes_of_images(sample.gt_label, num_classes, sample.get('img_path', 'an image'))
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
