"""Stock inferencers of a model that is there already: their pipelines, forward passes and visualizers."""

import copy
from typing import Union

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmseg.apis import MMSegInferencer
from mmseg.models import BaseSegmentor
from mmseg.visualization import SegLocalVisualizer
from torch import nn

from mmtr.checks.data import datasets_in, loads_annotations
from mmtr.config.types import CLASSIFIER, derives
from mmtr.errors import UserError

#: How much of the picture the colours of classes cover.
OPACITY = 0.6


class OfModel:
    """Mixin of a stock inferencer that takes a model in place of building one, and whose visualizer writes no files.

    Args:
        cfg: mmengine ``Config`` whose ``test_dataloader`` reads images.
        model: Of that config, in eval mode, on its device.
        dataset_meta: ``classes`` and ``palette``, as ``dataset_meta`` gives them.

    Raises:
        UserError: The config's test pipeline reads no image file.
    """

    visualizer_type: type

    def __init__(self, cfg: Config, model: nn.Module, dataset_meta: dict):
        self._given = model
        cfg = copy.deepcopy(cfg)
        data = cfg.test_dataloader.dataset = next(datasets_in(cfg.test_dataloader.dataset))
        data.pipeline = [step for step in data.pipeline if not loads_annotations(step)]
        try:
            super().__init__(
                cfg, device=str(next(model.parameters()).device), scope=cfg.get('default_scope') or 'mmseg'
            )
        except ValueError as error:
            raise UserError(f"Config '{cfg.filename}' reads no image files: {error}.") from error
        # Not before: mmseg's starts with the classes of Cityscapes.
        self.visualizer.dataset_meta = dataset_meta

    def _init_model(self, cfg, weights, device='cpu'):
        return self._given

    def _init_visualizer(self, cfg):
        return self.visualizer_type(alpha=OPACITY)

    def batch(self, image: Union[str, np.ndarray]) -> dict:
        """What ``forward`` takes of one image: a file, or (height, width, 3) uint8 BGR."""
        return self.collate_fn([self.pipeline(image)])

    def draw(self, image: np.ndarray, sample, score_thr: float) -> np.ndarray:
        """The image, (height, width, 3) uint8 RGB, with its prediction; instances from a score on."""
        raise NotImplementedError


class SegInferencer(OfModel, MMSegInferencer):
    """mmseg's, of a model; see ``OfModel``."""

    visualizer_type = SegLocalVisualizer

    def draw(self, image, sample, score_thr):
        """See ``OfModel``."""
        self.visualizer.add_datasample('', image, sample, draw_gt=False)
        return self.visualizer.get_image()


def build_inferencer(cfg: Config, model: nn.Module, dataset_meta: dict):
    """The stock inferencer for a segmentor of mmseg or a detector of mmdet, see ``OfModel``; or a ``ClsInferencer``."""
    if isinstance(model, BaseSegmentor):
        return SegInferencer(cfg, model, dataset_meta)
    if derives(type(model), CLASSIFIER):
        from .cls_inferencer import ClsInferencer  # mmpretrain need not be there

        return ClsInferencer(cfg, model, dataset_meta)
    from .det_inferencer import BaseDetector, DetInferencer  # mmdet takes long to import

    if isinstance(model, BaseDetector):
        return DetInferencer(cfg, model, dataset_meta)
    raise UserError(
        f'{type(model).__name__} is no segmentor of mmseg, no detector of mmdet and no classifier of mmpretrain.'
    )


def dataset_meta(cfg: Config, meta: dict, model: nn.Module) -> tuple[dict, list[str]]:
    """``classes`` and ``palette`` to draw a model's predictions with, and which of them had to be made up.

    They are those of the checkpoint, else of the config's test data, if they are of all classes of the model.

    Args:
        cfg: mmengine ``Config``.
        meta: Of the checkpoint.
        model: Of the config.
    """
    count = getattr(model, 'num_classes', None) or max(
        (module.num_classes for module in model.modules() if isinstance(getattr(module, 'num_classes', None), int)),
        default=0,
    )
    # Checkpoints of before mmseg 1 and mmdet 3 have the keys in capitals.
    saved = {key.lower(): value for key, value in (meta.get('dataset_meta') or meta).items()}
    found = _complete(saved, count)
    if not (found.get('classes') and found.get('palette')):
        own = _complete(_metainfo(cfg), count)
        if found.get('classes') in (None, own.get('classes')):
            found = {**own, **found}
    absent = [key for key in ('classes', 'palette') if not found.get(key)]
    found.setdefault('classes', [f'class {i}' for i in range(count)])
    colours = np.random.default_rng(0).integers(0, 256, (len(found['classes']), 3)).tolist()
    found.setdefault('palette', list(map(tuple, colours)))
    return found, absent


def _complete(meta, count):
    """The names and colours of a ``metainfo``, as lists, if they are of ``count`` classes."""
    classes, palette = (meta.get(key) or () for key in ('classes', 'palette'))
    if classes and len(classes) != (count or len(classes)):
        return {}  # its colours are of other classes too
    found = dict(classes=list(classes)) if classes else {}
    # mmdet leaves COCO's colours to data of fewer classes.
    if isinstance(palette, (list, tuple)) and len(palette) >= max(count, len(classes), 1):
        found['palette'] = list(map(tuple, palette))
    return found


def _metainfo(cfg) -> dict:
    """Of the config's test data, which need not be there."""
    data = next(datasets_in(cfg.test_dataloader.dataset))
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope') or 'mmseg') as registry:
        return registry.build({**data, 'lazy_init': True, 'pipeline': []}).metainfo


def reads_images(cfg: Config) -> bool:
    """Whether a config has a model and test data."""
    return bool(cfg.get('model') and (cfg.get('test_dataloader') or {}).get('dataset'))
