"""Common mistakes in a config are one sentence before the run, where stock code has a traceback, later, or nothing."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from PIL import Image

from mmtr.checks import config as config_check
from mmtr.checks.building import in_words_of
from mmtr.checks.config import check_config
from mmtr.errors import UserError

LOADERS = ('train_dataloader', 'val_dataloader')
# What a user writes below `_base_ = 'tiny.py'`, and what the sentence must say.
MISTAKES = {
    'the settings of another backbone are inherited': (
        "model = dict(backbone=dict(type='mmseg.MixVisionTransformer'))",
        "model.backbone of type MixVisionTransformer has no setting 'final_norm' and 'img_size' and 'patch_size'; the "
        'base config has it for type VisionTransformer: write _delete_=True into model.backbone',
    ),
    'the settings of another optimizer are inherited': (
        "optim_wrapper = dict(optimizer=dict(type='SGD', betas=(0.9, 0.99)))",
        "optim_wrapper.optimizer of type SGD has no setting 'betas'; it has ",
    ),
    'another loop inherits its length': (
        "train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)\n"
        "train_dataloader = dict(sampler=dict(type='DefaultSampler'))",
        "train_cfg of type EpochBasedTrainLoop has no setting 'max_iters'; the base config has it for type "
        'IterBasedTrainLoop: write _delete_=True into train_cfg',
    ),
    '_delete_ with nothing to delete': (
        "custom_hooks = [dict(_delete_=True, type='EarlyStoppingHook', monitor='mIoU')]",
        'custom_hooks.0 has _delete_=True, but no base config',
    ),
    'a misspelt setting of a backbone': (
        'model = dict(backbone=dict(num_layer=3))',
        "model.backbone of type VisionTransformer has no setting 'num_layer'; did you mean 'num_layers'?",
    ),
    'a misspelt setting of a transform': (
        "train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile', to_float=True), "
        "dict(type='PackSegInputs')]))",
        "train_dataloader.dataset.pipeline.0 of type LoadImageFromFile has no setting 'to_float'; did you mean "
        "'to_float32'?",
    ),
    'a misspelt setting of a data set': (
        "train_dataloader = dict(dataset=dict(image_suffix='.png'))",
        "train_dataloader.dataset of type BaseSegDataset has no setting 'image_suffix'; did you mean 'img_suffix'?",
    ),
    'a misspelt class': (
        "model = dict(decode_head=dict(type='SegmenterMaskTranformerHead'))",
        "model.decode_head.type='SegmenterMaskTranformerHead' is unknown in mmseg; did you mean "
        "'SegmenterMaskTransformerHead'?",
    ),
    'a class that nothing imports': (
        "model = dict(decode_head=dict(type='HeadOfMine'))",
        "model.decode_head.type='HeadOfMine' is unknown in mmseg; a class of your own is registered, and imported by "
        'custom_imports=',
    ),
    'a class of another library': (
        "model = dict(decode_head=dict(type='RPNHead'))",
        "model.decode_head.type='RPNHead' is unknown in mmseg; mmdet has one: type='mmdet.RPNHead'.",
    ),
    'no default scope': ('default_scope = None', "the config has no default_scope, such as 'mmseg'"),
    'a setting that is required': (
        'param_scheduler = [dict(type="StepLR", by_epoch=False)]',
        'param_scheduler.0 of type StepLR needs step_size',
    ),
    'workers that persist, without workers': (
        'train_dataloader = dict(persistent_workers=True)',
        'train_dataloader.persistent_workers=True needs worker',
    ),
    'a loader that shuffles': (
        'train_dataloader = dict(shuffle=True)',
        "sampler=dict(type='DefaultSampler', shuffle=True)",
    ),
    "a loader's setting of mmsegmentation 0.x": (
        'train_dataloader = dict(samples_per_gpu=2)',
        "no setting 'samples_per_gpu'; it is called 'batch_size'.",
    ),
    'nothing is packed': (
        "train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), "
        "dict(type='LoadAnnotations')]))",
        'train_dataloader.dataset.pipeline ends with LoadAnnotations, which packs nothing',
    ),
    'weights of classes': (
        'model = dict(decode_head=dict(loss_decode=dict(class_weight=[1., 2., 3.])))',
        'model.decode_head.loss_decode.class_weight has 3 weights for num_classes=4',
    ),
    'weights of classes with a sigmoid': (
        'model = dict(decode_head=dict(loss_decode=dict(use_sigmoid=True, class_weight=[1., 1., 1., 1.])))',
        'set use_sigmoid=False',
    ),
    'a slide without stride': (
        "model = dict(test_cfg=dict(mode='slide', crop_size=(32, 32)))",
        'needs stride=(height, width) in pixels, not None',
    ),
    'a stride that leaves pixels out': (
        "model = dict(test_cfg=dict(mode='slide', crop_size=(16, 16), stride=(20, 20)))",
        'stride=(20, 20) is larger than crop_size=(16, 16)',
    ),
    'a test_cfg without mode': (
        'model = dict(test_cfg=dict(_delete_=True))',
        "model.test_cfg.mode=None must be 'whole', or 'slide'",
    ),
    'one class': ('model = dict(decode_head=dict(num_classes=1))', 'set num_classes=2, out_channels=1'),
    'one channel with softmax': (
        'model = dict(decode_head=dict(num_classes=2, out_channels=1))',
        'out_channels=1 needs loss_decode.use_sigmoid=True',
    ),
    'classes that the data have not': (
        'model = dict(decode_head=dict(num_classes=11))',
        'model.decode_head.num_classes=11, but BaseSegDataset has 4 classes',
    ),
    'classes that an auxiliary head has not': (
        "model = dict(auxiliary_head=dict(type='FCNHead', in_channels=32, channels=16, num_classes=3))",
        'model.auxiliary_head.num_classes=3, but BaseSegDataset has 4 classes',
    ),
    'one class as text': (
        "train_dataloader = dict(dataset=dict(metainfo=dict(classes=('cell'))))",
        "write ('cell', ).",
    ),
    'classes in capitals': (
        "train_dataloader = dict(dataset=dict(metainfo=dict(CLASSES=('a', 'b'))))",
        'metainfo.CLASSES, which nothing reads',
    ),
    'a colour too few': (
        'train_dataloader = dict(dataset=dict(metainfo=dict(palette=[[0, 0, 0]])))',
        '4 classes and 1 colours in palette',
    ),
    'data of ones own as those of ADE20K': (
        "train_dataloader = dict(dataset=dict(type='ADE20KDataset', metainfo=dict(classes=('sky', 'cell', 'x', 'y'))))",
        "ADE20KDataset reads 150 classes of its own, of which 'cell' is none",
    ),
    'another reduce_zero_label in the pipeline': (
        "train_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), "
        "dict(type='LoadAnnotations', reduce_zero_label=True), dict(type='PackSegInputs')]))",
        'has LoadAnnotations with reduce_zero_label=True, but the data set has reduce_zero_label=False',
    ),
    'a data_prefix as text': (
        "train_dataloader = dict(dataset=dict(data_prefix='images'))\n",
        "data_prefix='images' of BaseSegDataset must be dict(img_path=..., seg_map_path=...)",
    ),
    'padding that is not ignored': (
        'model = dict(decode_head=dict(ignore_index=0))',
        'model.data_preprocessor.seg_pad_val=255 pads label maps with what model.decode_head.ignore_index=0',
    ),
    'no size to pad to': ('model = dict(data_preprocessor=dict(size=None))', 'training needs one of them'),
    'epochs in a schedule of iterations': (
        "param_scheduler = [dict(type='PolyLR', end=4)]",
        'param_scheduler.0, a PolyLR, counts epochs, and train_cfg',
    ),
    'checkpoints of epochs in a loop of iterations': (
        'default_hooks = dict(checkpoint=dict(by_epoch=True))',
        'nothing would be saved every 2',
    ),
    'an epoch without end': ("train_cfg = dict(_delete_=True, type='EpochBasedTrainLoop', max_epochs=2)", 'never ends'),
    'a loop of two kinds': ('train_cfg = dict(by_epoch=False)', 'train_cfg has both'),
    'a score that is not measured': (
        "default_hooks = dict(checkpoint=dict(save_best='mIou'))",
        "save_best='mIou' is no score of val_evaluator, which gives aAcc, mIoU, mAcc; did you mean 'mIoU'?",
    ),
    'validation without its label maps': (
        "val_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]))",
        'val_evaluator is an IoUMetric, and val_dataloader.dataset.pipeline loads no label maps',
    ),
    'half a validation': ('val_evaluator = None', 'The config has val_dataloader and val_cfg but no val_evaluator'),
    'nothing to train on': (
        'train_dataloader = None',
        'The config has no train_dataloader: this run needs train_dataloader, train_cfg, ',
    ),
    'no model': ('model = None', 'The config has no model, model=None'),
}


@pytest.fixture
def train(tiny_segmenter, tmp_path, tool):
    """Function that runs tools/train.py on `tiny.py` with more lines below."""

    def run(lines):
        tiny_segmenter.dump(str(tmp_path / 'tiny.py'))
        (tmp_path / 'mine.py').write_text(f"_base_ = 'tiny.py'\n{lines}\n")
        return tool('train', tmp_path / 'mine.py')

    return run


@pytest.mark.parametrize('lines, words', MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence(train, tmp_path, lines, words):
    status, said = train(lines)
    assert status == 2, said
    assert words in said.splitlines()[-1] and said.splitlines()[-1].startswith('Error: ')
    assert not (tmp_path / 'work').exists()


def test_a_key_that_nothing_reads_is_said(tiny_segmenter, monkeypatch):
    said = []
    monkeypatch.setattr(config_check, 'print_log', lambda text, *_: said.append(text))
    check_config(Config({**tiny_segmenter, 'optim_wraper': dict(clip_grad=None)}), LOADERS)
    assert said == ["The config has 'optim_wraper', which nothing reads; did you mean 'optim_wrapper'?"]


def test_a_config_of_the_time_before_is_told_apart():
    old = Config(dict(model=dict(type='EncoderDecoder'), data=dict(samples_per_gpu=2), runner=dict(max_iters=4)))
    with pytest.raises(UserError, match='is one of mmsegmentation 0.x or mmdetection 2.x, it has data and runner'):
        check_config(old, LOADERS)


class Part:
    """What a faulty model calls in a wrong way."""

    def __init__(self, width, height=1):
        pass


@MODELS.register_module(force=True)
class Faulty(torch.nn.Module):
    """A model with faults of its code."""

    def __init__(self, fault, padding_mod=None):
        super().__init__()
        if fault == 'unexpected':
            Part(1, padding_mod=padding_mod)
        elif fault == 'missing':
            Part(height=2)
        raise KeyError('gone')


@pytest.mark.parametrize('fault, kind', [('unexpected', TypeError), ('missing', TypeError), ('key', KeyError)])
def test_faults_of_code_keep_their_traceback(fault, kind):
    cfg = Config(dict(model=dict(type='Faulty', fault=fault, padding_mod='zeros')))
    with pytest.raises(kind) as raised, in_words_of(cfg):
        MODELS.build(cfg.model)
    assert not isinstance(raised.value, UserError)


@pytest.mark.parametrize(
    'pixels, words',
    [
        (np.zeros((64, 64, 3), np.uint8), "3.png' has 3 channels, it is an image (colour) and no label map"),
        (np.zeros((64, 64, 2), np.uint8), "3.png' has 2 channels, it is an image (grey with alpha) and no label map"),
        (
            np.full((64, 64), 300, np.uint16),
            "3.png' has values from 300 to 300, of which mmsegmentation reads the lowest",
        ),
        (np.full((64, 64), 4, np.uint8), "3.png' holds the label 4, but labels must be 0 to 3"),
        (None, "3.png' cannot be read as an image"),
    ],
)
def test_a_file_that_is_no_label_map_is_named_before_the_run(train, drawn_data, pixels, words):
    path = drawn_data / 'annotations' / 'training' / '3.png'
    if pixels is None:
        path.write_bytes(b'gone')
    else:
        Image.fromarray(pixels).save(path)
    status, said = train('')
    assert status == 2 and words in said
    # With a transform of the user's own, colours may become labels, so the run begins.
    assert 'RuntimeInfoHook' not in said
