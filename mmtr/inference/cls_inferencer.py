"""Classifiers of mmpretrain: its own inferencer keeps no pillow decoder and gives no batch."""

from typing import Union

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DefaultScope
from mmengine.structures import BaseDataElement
from mmpretrain.visualization import UniversalVisualizer
from torch import nn

from mmtr.checks.data import datasets_in
from mmtr.config.types import type_name
from mmtr.errors import UserError
from mmtr.visualization.picture import WIDTHS, fitted


class ClsInferencer:
    """Predicts the class of images, and draws it; what ``build_inferencer`` gives for a classifier.

    Args:
        cfg: mmengine ``Config`` whose ``test_dataloader`` reads images.
        model: Of that config, in eval mode, on its device.
        dataset_meta: ``classes``, as ``dataset_meta`` gives them.

    Raises:
        UserError: The config's test pipeline reads no image file.
    """

    def __init__(self, cfg: Config, model: nn.Module, dataset_meta: dict):
        self.model, self.classes = model, dataset_meta['classes']
        load, *steps = next(datasets_in(cfg.test_dataloader.dataset)).pipeline
        if type_name(load['type']) != 'LoadImageFromFile':
            raise UserError(
                f"Config '{cfg.filename}' reads no image files: its test pipeline begins with "
                f'{type_name(load["type"])}, not LoadImageFromFile.'
            )
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmpretrain'):
            self._read, self._steps = Compose([load]), Compose(steps)
        self._visualizer = UniversalVisualizer()

    def batch(self, image: Union[str, np.ndarray]) -> dict:
        """Prepare one image for ``forward``: a file, or (height, width, 3) uint8 BGR."""
        if isinstance(image, np.ndarray):
            loaded = dict(img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])
        else:
            loaded = self._read(dict(img_path=str(image)))
        return pseudo_collate([self._steps(loaded)])

    @torch.no_grad()
    def forward(self, batch: dict) -> list:
        """Run the model's own test step."""
        return self.model.test_step(batch)

    def draw(self, image: np.ndarray, sample: BaseDataElement, score_thr: float) -> np.ndarray:
        """Write name and score of its class on an image, (height, width, 3) uint8 RGB; a narrow one is enlarged."""
        image = fitted(image) if image.shape[1] < WIDTHS[0] else image
        return self._visualizer.visualize_cls(image, sample, classes=self.classes, draw_gt=False)

    def in_words(self, sample: BaseDataElement) -> str:
        """Return name and score of the class of a data sample."""
        label = int(sample.pred_label)
        return f'{self.classes[label]} {sample.pred_score[label]:.2f}'
