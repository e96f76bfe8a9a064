"""mmdet's inferencer for a model that is already built."""

import warnings

import numpy as np
from mmdet.apis import DetInferencer as StockInferencer
from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer

from .agreement import shown
from .inferencers import OfModel

__all__ = ['BaseDetector', 'DetInferencer']


class DetInferencer(OfModel, StockInferencer):
    """mmdet's ``DetInferencer`` for a built model; see ``OfModel``. It draws the prediction that ``shown`` names."""

    visualizer_type = DetLocalVisualizer

    def draw(self, image: np.ndarray, sample: DetDataSample, score_thr: float) -> np.ndarray:
        """Draw a prediction; see ``OfModel``."""
        kind = shown(sample)
        void = len(self.visualizer.dataset_meta['classes'])
        if kind == 'pred_panoptic_seg' and (sample.pred_panoptic_seg.sem_seg == void).all():
            return image.copy()  # the stock visualizer fails if nothing was found
        state = np.random.get_state()
        np.random.seed(0)  # the visualizer draws random shades of the colours: the same each time
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings('ignore', '.*out of bounds')  # also given for objects that touch the border
                self.visualizer.add_datasample(
                    '', image, DetDataSample(**{kind: sample.get(kind)}), draw_gt=False, pred_score_thr=score_thr
                )
        finally:
            np.random.set_state(state)
        return self.visualizer.get_image()
