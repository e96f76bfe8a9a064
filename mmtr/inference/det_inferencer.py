"""mmdet's inferencer of a model that is there already."""

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
    """mmdet's, of a model; see ``OfModel``. Of several kinds of prediction, the one that ``shown`` names is drawn."""

    visualizer_type = DetLocalVisualizer

    def draw(self, image, sample, score_thr):
        """See ``OfModel``."""
        kind = shown(sample)
        void = len(self.visualizer.dataset_meta['classes'])
        if kind == 'pred_panoptic_seg' and (sample.pred_panoptic_seg.sem_seg == void).all():
            return image.copy()  # where nothing was found, the stock visualizer stops
        state = np.random.get_state()
        np.random.seed(0)  # it varies the colours of a class; the same way each time
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings('ignore', '.*out of bounds')  # said of what touches the border, too
                self.visualizer.add_datasample(
                    '', image, DetDataSample(**{kind: sample.get(kind)}), draw_gt=False, pred_score_thr=score_thr
                )
        finally:
            np.random.set_state(state)
        return self.visualizer.get_image()
