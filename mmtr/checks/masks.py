"""Read a few label maps before a run, to find colours, 16 bits, and labels that are no class."""

from collections.abc import Iterable, Iterator
from typing import Optional

import mmcv
import numpy as np
from mmengine import fileio
from mmengine.registry import TRANSFORMS
from mmseg.datasets.transforms import LoadAnnotations

from mmtr.checks.model_config import segmentation_heads, type_of
from mmtr.errors import UserError

from .labels import check_labels, check_shape

# Packages whose transforms do not turn colours into labels.
STOCK = ('mmcv', 'mmseg', 'mmdet', 'mmtr')


def steps_in(pipeline: Optional[Iterable]) -> Iterator[dict]:
    """Yield each step of a pipeline, nested steps included."""
    for step in pipeline or ():
        if isinstance(step, (list, tuple)):
            yield from steps_in(step)
        elif isinstance(step, dict):
            yield step
            yield from steps_in(step.get('transforms'))


def check_reduction(kind: type, settings: dict) -> None:
    """Raise a ``UserError`` if data set and pipeline differ in ``reduce_zero_label``.

    mmseg finds that later, in a worker of the loader.

    Args:
        kind: Class of the data set.
        settings: Arguments of the data set.
    """
    own = settings.get('reduce_zero_label')
    for step in steps_in(settings.get('pipeline')):
        given = step.get('reduce_zero_label') if type_of(step) == 'LoadAnnotations' else None
        if own is not None and given is not None and given != own:
            raise UserError(
                f'The pipeline of {kind.__name__} has LoadAnnotations with reduce_zero_label={given}, but '
                f'the data set has reduce_zero_label={own}: set it in the data set alone, True where 0 in '
                "the label maps stands for 'no class', False where 0 is the first class."
            )


def check_masks(pairs: Iterable[dict], pipeline: Iterable, model: dict, scope: str) -> None:
    """Check the label maps of some images, loaded by mmseg's ``LoadAnnotations``.

    A transform of the user's own may turn anything into labels: if the pipeline has one, nothing is checked.

    Args:
        pairs: Entries of the data set's ``load_data_list``.
        pipeline: Pipeline of the data set.
        model: Config of the model.
        scope: Registry scope of the pipeline.

    Raises:
        UserError: A file is no image, has several channels or values that 8 bits cannot hold, or a label is no class.
    """
    with TRANSFORMS.switch_scope_and_registry(scope) as registry:
        steps = list(steps_in(pipeline))
        kinds = [registry.get(step['type']) if isinstance(step['type'], str) else step['type'] for step in steps]
        load = next((registry.build(step) for step, kind in zip(steps, kinds) if kind is LoadAnnotations), None)
        if load is None or not all(kind is not None and kind.__module__.split('.')[0] in STOCK for kind in kinds):
            return
    head = next((head for _, head in segmentation_heads(model)), {})
    for pair in pairs:
        path = pair['seg_map_path']
        check_shape(_pixels(path, load).shape, path)
        labels = load({**pair, 'seg_fields': []})['gt_seg_map']
        if head.get('num_classes'):
            check_labels(labels, head['num_classes'], {head.get('ignore_index', 255)}, path, load.reduce_zero_label)


def _pixels(path, load):
    content = fileio.get(path, backend_args=load.backend_args)
    try:
        pixels = mmcv.imfrombytes(content, flag='unchanged', backend=load.imdecode_backend) if content else None
    except OSError:  # of pillow
        pixels = None
    if pixels is None:
        raise UserError(f"The label map '{path}' cannot be read as an image.")
    pixels = pixels.squeeze()
    if pixels.dtype != np.bool_ and not 0 <= pixels.min() <= pixels.max() <= 255:
        raise UserError(
            f"The label map '{path}' has values from {pixels.min()} to {pixels.max()}, of which "
            'mmsegmentation reads the lowest 8 bits: write labels of 0 to 255.'
        )
    return pixels
