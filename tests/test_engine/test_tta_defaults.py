import copy

import pytest
from mmengine.config import Config
from mmengine.hub import get_config

from mmtr.errors import UserError
from mmtr.inference.tta import flipped, scaled_and_flipped, use_tta

LOAD, PACK = dict(type='LoadImageFromFile'), dict(type='PackSegInputs')
LABELS = dict(type='LoadAnnotations')


def cfg_of(tiny, **changes):
    cfg = Config(dict(tiny, tta_model=None, tta_pipeline=None))
    cfg.merge_from_dict(changes)
    return cfg


@pytest.mark.parametrize(
    'resize, sizes',
    [
        (dict(type='Resize', scale=(2048, 512), keep_ratio=True), [('scale', (1024, 256)), ('scale', (3584, 896))]),
        (dict(type='Resize', scale=518), [('scale', 259), ('scale', 906)]),  # 906.5, to the even one
        (dict(type='mmcv.Resize', scale_factor=2.0), [('scale_factor', 1.0), ('scale_factor', 3.5)]),
    ],
    ids=str,
)
def test_sizes_are_multiples_of_that_of_the_test(resize, sizes):
    *head, augment = scaled_and_flipped([LOAD, LABELS, resize, dict(type='Pad', size=(9, 9)), PACK])
    resized, flips, *others = augment['transforms']
    assert head == [LOAD] and [step['prob'] for step in flips] == [0, 1]
    # Labels are loaded last, so that neither size nor flip is theirs.
    assert others == [[dict(type='Pad', size=(9, 9))], [LABELS], [PACK]]
    for step, (key, value) in zip((resized[0], resized[-1]), sizes):
        assert step == {**resize, key: value}


def test_a_detector_is_flipped_as_by_mmdets_tool_and_what_puts_boxes_back_is_packed():
    steps = get_config('mmdet::_base_/datasets/coco_instance.py').test_pipeline
    *head, augment = flipped(steps)
    flips, (pack,) = augment['transforms']
    assert head == steps[:-1] and {step['prob'] for step in flips} == {0, 1}
    assert pack['meta_keys'] == (
        'img_id',
        'img_path',
        'ori_shape',
        'img_shape',
        'scale_factor',
        'flip',
        'flip_direction',
    )


def test_data_sets_in_wrappers_are_augmented_too(tiny_segmenter):
    inner = tiny_segmenter.test_dataloader.dataset
    cfg = cfg_of(tiny_segmenter)
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=[inner, inner])
    use_tta(cfg)
    assert cfg.model.type == 'mmseg.SegTTAModel'
    assert all(each.pipeline[-1].type == 'TestTimeAug' for each in cfg.test_dataloader.dataset.datasets)


def detector(metric):
    return dict(default_scope='mmdet', model=dict(_delete_=True, type='MaskRCNN'), test_evaluator=metric)


@pytest.mark.parametrize(
    'changes, words',
    [
        (
            detector(dict(_delete_=True, type='CocoPanopticMetric')),
            'instances alone, and CocoPanopticMetric measures maps',
        ),
        (
            dict(test_evaluator=dict(_delete_=True, type='mmtr.BinaryMetric')),
            'mmtr.BinaryMetric measures probabilities',
        ),
        (dict(test_dataloader=dict(dataset=dict(pipeline=[LOAD, LABELS]))), "pipeline that ends in 'LoadAnnotations'"),
        (dict(model=dict(_delete_=True, type='SegDataPreProcessor')), 'there is no default for a SegDataPreProcessor'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)
def test_what_cannot_be_augmented_is_one_sentence(tiny_segmenter, changes, words):
    with pytest.raises(UserError, match=words):
        use_tta(cfg_of(tiny_segmenter, **changes))


def test_detectors_get_the_model_that_merges_masks_too(tiny_segmenter):
    cfg = cfg_of(tiny_segmenter, **detector(dict(_delete_=True, type='CocoMetric', metric=['bbox', 'segm'])))
    given = Config(copy.deepcopy(cfg.to_dict()))
    given.tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='soft_nms'), max_per_img=7))
    for each, most in ((cfg, 100), (given, 7)):
        use_tta(each)
        assert each.model.type == 'mmtr.DetTTAModel' and each.model.module.type == 'MaskRCNN'
        assert each.model.tta_cfg.max_per_img == most
