"""Stock inferencers for a model that is already built: their pipelines, forward passes and visualizers."""

import copy
from typing import TYPE_CHECKING, Union

import numpy as np
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement
from mmseg.apis import MMSegInferencer
from mmseg.models import BaseSegmentor
from mmseg.visualization import SegLocalVisualizer
from torch import nn

from mmtr.checks.data import datasets_in, loads_annotations
from mmtr.config.types import CLASSIFIER, derives
from mmtr.errors import UserError

if TYPE_CHECKING:  # it imports mmpretrain, which need not be there
    from .cls_inferencer import ClsInferencer

#: Opacity of the colours of classes over the image.
OPACITY = 0.6


class OfModel:
    """Mixin for a stock inferencer that takes a built model, and whose visualizer writes no files.

    Args:
        cfg: Config whose ``test_dataloader`` reads images.
        model: Model of that config, in eval mode, on its device.
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
        # Set last: mmseg's inferencer starts with the classes of Cityscapes.
        self.visualizer.dataset_meta = dataset_meta

    def _init_model(self, cfg, weights, device='cpu'):
        return self._given

    def _init_visualizer(self, cfg):
        return self.visualizer_type(alpha=OPACITY)

    def batch(self, image: Union[str, np.ndarray]) -> dict:
        """Build the batch of one image for ``forward``, from a file or an array (height, width, 3) uint8 BGR."""
        return self.collate_fn([self.pipeline(image)])

    def draw(self, image: np.ndarray, sample: BaseDataElement, score_thr: float) -> np.ndarray:
        """Draw a prediction on its image, (height, width, 3) uint8 RGB; only instances above ``score_thr``."""
        raise NotImplementedError


class SegInferencer(OfModel, MMSegInferencer):
    """mmseg's ``MMSegInferencer`` for a built model; see ``OfModel``."""

    visualizer_type = SegLocalVisualizer

    def draw(self, image: np.ndarray, sample: BaseDataElement, score_thr: float) -> np.ndarray:
        """Draw the label map; see ``OfModel``."""
        self.visualizer.add_datasample('', image, sample, draw_gt=False)
        return self.visualizer.get_image()


def build_inferencer(cfg: Config, model: nn.Module, dataset_meta: dict) -> Union[BaseInferencer, 'ClsInferencer']:
    """Build the stock inferencer for a segmentor or detector, or a ``ClsInferencer``; arguments as of ``OfModel``.

    Raises:
        UserError: The model is none of these; or see ``OfModel``.
    """
    if isinstance(model, BaseSegmentor):
        return SegInferencer(cfg, model, dataset_meta)
    if derives(type(model), CLASSIFIER):
        from .cls_inferencer import ClsInferencer

        return ClsInferencer(cfg, model, dataset_meta)
    from .det_inferencer import BaseDetector, DetInferencer  # mmdet takes long to import

    if isinstance(model, BaseDetector):
        return DetInferencer(cfg, model, dataset_meta)
    raise UserError(
        f'{type(model).__name__} is no segmentor of mmseg, no detector of mmdet and no classifier of mmpretrain.'
    )


def dataset_meta(cfg: Config, meta: dict, model: nn.Module) -> tuple[dict, list[str]]:
    """Find names and colours of classes for drawing a model's predictions.

    They come from the checkpoint, else from the config's test data, if those have as many classes as the model.

    Args:
        cfg: Config with test data.
        meta: ``meta`` of the checkpoint.
        model: Model of the config.

    Returns:
        A dict with ``classes`` and ``palette``; and which of the two were not found and are generated.
    """
    count = getattr(model, 'num_classes', None) or max(
        (module.num_classes for module in model.modules() if isinstance(getattr(module, 'num_classes', None), int)),
        default=0,
    )
    # Checkpoints of mmseg 0.x and mmdet 2.x have the keys in capitals.
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
    """Names and colours in a ``metainfo``, as lists; only those for ``count`` classes."""
    classes, palette = (meta.get(key) or () for key in ('classes', 'palette'))
    if classes and len(classes) != (count or len(classes)):
        return {}  # its colours are for other classes too
    found = dict(classes=list(classes)) if classes else {}
    # A palette may be longer: mmdet leaves COCO's colours to data sets of fewer classes.
    if isinstance(palette, (list, tuple)) and len(palette) >= max(count, len(classes), 1):
        found['palette'] = list(map(tuple, palette))
    return found


def _metainfo(cfg) -> dict:
    """The ``metainfo`` of the config's test data, whose files need not be there."""
    data = next(datasets_in(cfg.test_dataloader.dataset))
    with DATASETS.switch_scope_and_registry(cfg.get('default_scope') or 'mmseg') as registry:
        return registry.build({**data, 'lazy_init': True, 'pipeline': []}).metainfo


def reads_images(cfg: Config) -> bool:
    """Whether a config has a model and test data."""
    return bool(cfg.get('model') and (cfg.get('test_dataloader') or {}).get('dataset'))
