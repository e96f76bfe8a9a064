"""Measures of foreground maps, by PySODMetrics."""

import numpy as np
from mmengine.evaluator import BaseMetric

from mmtr.errors import UserError
from mmtr.registry import METRICS

BETA2 = 0.3
ALPHA = 0.5


def library():
    """The module ``py_sod_metrics``.

    Raises:
        UserError: It is not installed.
    """
    try:
        import py_sod_metrics
    except ImportError as error:
        raise UserError(
            'mmtr.BinaryMetric needs PySODMetrics, which is not installed: '
            'pip install --no-deps -r requirements/binary.txt'
        ) from error
    return py_sod_metrics


def s_measure():
    """The library's S-measure, of regions of one pixel and of none too, where it divides by zero."""

    class Smeasure(library().Smeasure):
        def s_object(self, x):
            return super().s_object(np.repeat(x, 2) if x.size == 1 else x)

        def ssim(self, pred, gt):
            return super().ssim(pred, gt) if pred.size > 1 else 1.0

    return Smeasure(ALPHA)


@METRICS.register_module()
class BinaryMetric(BaseMetric):
    """Compares foreground probabilities with masks, at the size of the original image; 0 to 1, means over the images.

    ``Smeasure`` (Fan et al., ICCV 2017, alpha 0.5), ``wFmeasure`` (Margolin et al., CVPR 2014), ``MAE``, and with the
    probabilities cut at each of 256 thresholds or (adaptive) at twice their mean: ``meanEm`` and ``adpEm`` (Fan et al.,
    IJCAI 2018), ``maxFm`` and ``adpFm`` (beta^2 0.3). Ignored pixels count as background that was found.

    Args:
        weighted_beta2: beta^2 of the weighted F-measure. 0.3 as DAR; the measure's paper, and most others, have 1.
        kwargs: mmengine's ``BaseMetric``'s.

    Raises:
        UserError: PySODMetrics is not installed; the model has other outputs than one probability (one channel) or
            two logits a pixel; a mask is not of the size of its prediction.
    """

    def __init__(self, weighted_beta2=0.3, **kwargs):
        super().__init__(**kwargs)
        library()
        self.weighted_beta2 = weighted_beta2

    def process(self, data_batch, data_samples):
        """Measure each image of a batch: ``seg_logits`` (1 or 2, H, W) against ``gt_sem_seg`` (1, H, W)."""
        for sample in data_samples:
            labels = sample['gt_sem_seg']['data'].squeeze(0).cpu().numpy()
            found = foreground(sample['seg_logits']['data']).cpu().numpy()
            if found.shape != labels.shape:
                raise UserError(
                    f"'{sample.get('img_path')}' was segmented at {found.shape} and its mask loaded at "
                    f'{labels.shape}: in a test pipeline, LoadBinaryAnnotations comes after Resize.'
                )
            self.results.append(self.measure(np.where(labels < 2, found, 0), labels == 1))

    def measure(self, found, mask):
        """Measures of one image, by name: probabilities (H, W), bool (H, W) -> numbers, curves as arrays (256, )."""
        lib = library()
        mae, weighted = lib.MAE(), lib.WeightedFmeasure(self.weighted_beta2)
        structure, alignment = s_measure(), lib.Emeasure()
        cut = lib.FmeasureV2({'fm': lib.FmeasureHandler(with_dynamic=True, with_adaptive=True, beta=BETA2)})
        for each in (mae, weighted, structure, alignment, cut):
            each.step(found, mask, normalize=False)
        em, fm = alignment.get_results()['em'], cut.get_results()['fm']
        return dict(
            Smeasure=float(structure.get_results()['sm']),
            wFmeasure=float(weighted.get_results()['wfm']),
            MAE=float(mae.get_results()['mae']),
            meanEm=em['curve'],
            adpEm=float(em['adp']),
            maxFm=fm['dynamic'],
            adpFm=float(fm['adaptive']),
        )

    def compute_metrics(self, results):
        """Means over the images; of curves then their mean or maximum."""
        means = {name: np.mean([result[name] for result in results], axis=0) for name in results[0]}
        means.update(meanEm=means['meanEm'].mean(), maxFm=means['maxFm'].max())
        return {name: round(float(value), 4) for name, value in means.items()}


def foreground(seg_logits):
    """What mmseg's segmentors give, (1 or 2, H, W), as foreground probability (H, W), float64.

    Raises:
        UserError: There are more channels.
    """
    channels = len(seg_logits)
    if channels > 2:
        raise UserError(
            f"mmtr.BinaryMetric is for models of background and foreground, not of {channels} classes: use 'IoUMetric'."
        )
    # Of one channel mmseg has taken the sigmoid.
    return seg_logits[0].double() if channels == 1 else seg_logits.double().softmax(0)[1]
