"""Metrics of foreground maps, computed by PySODMetrics."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from torch import Tensor

from mmtr.errors import UserError
from mmtr.registry import METRICS

BETA2 = 0.3
ALPHA = 0.5


def library() -> ModuleType:
    """Import ``py_sod_metrics``.

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


def s_measure() -> Any:
    """Build the library's S-measure, also for regions of one pixel or none, where the library divides by zero."""

    class Smeasure(library().Smeasure):
        def s_object(self, x):
            return super().s_object(np.repeat(x, 2) if x.size == 1 else x)

        def ssim(self, pred, gt):
            return super().ssim(pred, gt) if pred.size > 1 else 1.0

    return Smeasure(ALPHA)


@METRICS.register_module()
class BinaryMetric(BaseMetric):
    """Compares foreground probabilities with masks, at the size of the original image; means over images, 0 to 1.

    The metrics are ``Smeasure`` (Fan et al., ICCV 2017, alpha 0.5), ``wFmeasure`` (Margolin et al., CVPR 2014) and
    ``MAE``. Four more threshold the probabilities: ``meanEm`` (Fan et al., IJCAI 2018) and ``maxFm`` (beta^2 0.3) at
    each of 256 thresholds, ``adpEm`` and ``adpFm`` at twice the mean probability. Ignored pixels count as correct
    background.

    Args:
        weighted_beta2: beta^2 of the weighted F-measure. DAR has 0.3; the metric's paper, and most others, have 1.
        kwargs: Arguments of mmengine's ``BaseMetric``.

    Raises:
        UserError: PySODMetrics is not installed; the model outputs neither one probability (one channel) nor two
            logits a pixel; or a mask has another size than its prediction.
    """

    def __init__(self, weighted_beta2: float = 0.3, **kwargs):
        super().__init__(**kwargs)
        library()
        self.weighted_beta2 = weighted_beta2

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
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

    def measure(self, found: np.ndarray, mask: np.ndarray) -> dict[str, Any]:
        """Measure one image.

        Args:
            found: Probabilities (H, W).
            mask: Foreground (H, W), bool.

        Returns:
            Metric by name: a number, or an array (256, ) of one value a threshold.
        """
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

    def compute_metrics(self, results: list[dict]) -> dict[str, float]:
        """Average over the images, then take the mean or maximum over the thresholds."""
        means = {name: np.mean([result[name] for result in results], axis=0) for name in results[0]}
        means.update(meanEm=means['meanEm'].mean(), maxFm=means['maxFm'].max())
        return {name: round(float(value), 4) for name, value in means.items()}


def foreground(seg_logits: Tensor) -> Tensor:
    """Turn the ``seg_logits`` of a segmentor, (1 or 2, H, W), into foreground probabilities (H, W), float64.

    Raises:
        UserError: There are more than two channels.
    """
    channels = len(seg_logits)
    if channels > 2:
        raise UserError(
            f"mmtr.BinaryMetric is for models of background and foreground, not of {channels} classes: use 'IoUMetric'."
        )
    # If there is one channel, mmseg has applied the sigmoid already.
    return seg_logits[0].double() if channels == 1 else seg_logits.double().softmax(0)[1]
