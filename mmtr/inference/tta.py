"""Test-time augmentation, also for configs without settings for it."""

from typing import Union

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS

from mmtr.checks.data import datasets_in
from mmtr.config.model import model_of
from mmtr.config.types import derives
from mmtr.errors import UserError

#: Scales of an image, relative to its size in the plain test, as in mmseg's configs.
RATIOS = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)
# The unflipped image comes first: predictions are merged into the first sample.
FLIPS = [dict(type='RandomFlip', prob=prob, direction='horizontal') for prob in (0.0, 1.0)]
# Keys that are needed to undo the augmentation of a prediction.
META_KEYS = ('flip', 'flip_direction')


def name_of(cfg: dict) -> str:
    """Return the name of the class in ``cfg['type']``, without its package."""
    return cfg['type'].rpartition('.')[2] if isinstance(cfg['type'], str) else cfg['type'].__name__


def use_tta(cfg: Config) -> None:
    """Change a config to test-time augmentation, by its ``tta_model`` and ``tta_pipeline`` or by default, in place.

    The default of a segmentor is that of mmseg's configs: ``RATIOS`` and flips, with averaged probabilities. The
    default of a detector is that of mmdet's tools/test.py: flips, with boxes, and here masks too, merged by
    non-maximum suppression.

    Raises:
        UserError: The model has no default, or a metric measures predictions that are not merged.
    """
    detects = _detects(cfg)
    data = list(datasets_in(cfg.test_dataloader.dataset))
    tta_model, tta_pipeline = cfg.get('tta_model'), cfg.get('tta_pipeline')
    if not tta_model:
        joined = dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)
        tta_model = dict(type='DetTTAModel', tta_cfg=joined) if detects else dict(type='mmseg.SegTTAModel')
    if name_of(tta_model) == 'DetTTAModel':  # mmdet's fails on masks
        from mmtr.models import detectors  # noqa: F401  takes long to import

        tta_model = {**tta_model, 'type': 'mmtr.DetTTAModel'}
    check_metrics(tta_model, cfg.test_evaluator)
    augmented = flipped if detects else scaled_and_flipped
    # All pipelines are built before any is set: two data sets may be one object.
    for each, pipeline in zip(data, [tta_pipeline or augmented(each.pipeline) for each in data]):
        each.pipeline = pipeline
    if not tta_pipeline:
        how = 'flips' if detects else f'flips and {len(RATIOS)} sizes, {RATIOS[0]:g} to {RATIOS[-1]:g}'
        print_log(f'--tta: the config has no tta_pipeline, so each image is tested by {how}.', 'current')
    # The wrapper would give the model a top-level data_preprocessor in place of its own.
    cfg.model, cfg.data_preprocessor = {**tta_model, 'module': model_of(cfg)}, None


def _detects(cfg):
    kind = cfg.model['type']
    if isinstance(kind, str):
        with MODELS.switch_scope_and_registry(cfg.get('default_scope', 'mmseg')) as registry:
            kind = registry.get(kind)
    detects, segments = (derives(kind or object, name) for name in ('mmdet.BaseDetector', 'mmseg.BaseSegmentor'))
    if not cfg.get('tta_model') and not (detects or segments):
        raise UserError(f'--tta needs a tta_model in the config: there is no default for a {name_of(cfg.model)}.')
    return detects


def check_metrics(tta_model: dict, evaluator: Union[dict, list]) -> None:
    """Raise a ``UserError`` for a metric of predictions that the stock TTA models do not merge.

    Such a metric would get the prediction of one view, or none.
    """
    kind = name_of(tta_model)
    for metric in evaluator if isinstance(evaluator, (list, tuple)) else [evaluator]:
        name = name_of(metric)
        if kind == 'DetTTAModel' and ('Panoptic' in name or 'Seg' in name):
            raise UserError(
                f'--tta with DetTTAModel merges instances alone, and {name} measures maps: measure '
                'instances by CocoMetric, or give a tta_model of your own.'
            )
        if kind == 'SegTTAModel' and name == 'BinaryMetric':
            raise UserError(
                '--tta with SegTTAModel merges labels, and mmtr.BinaryMetric measures probabilities: test '
                "without --tta, or with test_evaluator=dict(type='IoUMetric')."
            )


def scaled_and_flipped(steps: list[dict]) -> list[dict]:
    """Build the TTA pipeline of a segmentor from its test pipeline: scaled by each of ``RATIOS``, each also flipped.

    Annotations are loaded last, so that they are neither scaled nor flipped.

    Raises:
        UserError: The pipeline does not end with a packing step.
    """
    *steps, pack = _with_meta(steps)
    annotations = [step for step in steps if 'Annotations' in name_of(step)]
    steps = [step for step in steps if step not in annotations]
    at = next((i for i, step in enumerate(steps) if name_of(step) == 'Resize'), None)
    if at is None:  # no Resize: scale the image after the step that loads it
        steps = [steps[0], dict(type='Resize', scale_factor=1.0, keep_ratio=True), *steps[1:]]
        at = 1
    sizes = [_times(steps[at], ratio) for ratio in RATIOS]
    others = [[step] for step in (*steps[at + 1 :], *annotations, pack)]
    return [*steps[:at], dict(type='TestTimeAug', transforms=[sizes, FLIPS, *others])]


def _times(resize, ratio):
    key = 'scale' if resize.get('scale') else 'scale_factor'
    value = resize[key]
    if isinstance(value, (list, tuple)):
        return {**resize, key: tuple(type(n)(round(n * ratio)) if key == 'scale' else n * ratio for n in value)}
    return {**resize, key: round(value * ratio) if key == 'scale' else value * ratio}


def flipped(steps: list[dict]) -> list[dict]:
    """Build the TTA pipeline of a detector from its test pipeline: each image as it is and flipped.

    Raises:
        UserError: The pipeline does not end with a packing step.
    """
    *steps, pack = _with_meta(steps)
    return [*steps, dict(type='TestTimeAug', transforms=[FLIPS, [pack]])]


def _with_meta(steps):
    *steps, pack = steps
    if not name_of(pack).startswith('Pack'):
        raise UserError(
            '--tta needs a tta_pipeline in the config: none can be made of a test pipeline that ends in '
            f"'{name_of(pack)}' in place of PackSegInputs or PackDetInputs."
        )
    keys = pack.get('meta_keys')
    if keys:
        pack = {**pack, 'meta_keys': tuple(dict.fromkeys((*keys, *META_KEYS)))}
    return [*steps, pack]
