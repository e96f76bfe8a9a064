"""Cropr from training to deployment through the real runner, on a drawn data set."""

import json
import runpy

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.registry import DefaultScope
from mmengine.structures import InstanceData
from PIL import Image

from mmtr import UserError
from mmtr.inference.model import build_model, load_weights
from mmtr.registry import MODELS
from tests.conftest import CLASSES, TOOLS


@pytest.fixture
def cropr(tiny_segmenter):
    """``tiny_segmenter`` with four layers, two of them followed by a module, and the curriculum."""
    cfg = tiny_segmenter
    cfg.custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
    cfg.model.type = 'mmtr.EncoderDecoder'
    cfg.model.backbone.update(
        type='mmtr.VisionTransformer', num_layers=4, token_reduction=dict(type='Cropr', r=5, num_classes=len(CLASSES))
    )
    cfg.custom_hooks = [dict(type='mmtr.ReductionCurriculumHook')]
    return cfg


@pytest.fixture
def config(cropr, tmp_path):
    """Path of the config file of ``cropr``."""
    cropr.dump(str(tmp_path / 'tiny.py'))
    return tmp_path / 'tiny.py'


def deploy(*args):
    runpy.run_path(str(TOOLS / 'deploy_model.py'))['main'](list(map(str, args)))


def log(work_dir):
    """What was logged in training: {iteration: {name: value}}."""
    lines = [
        json.loads(line)
        for file in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in file.read_text().splitlines()
    ]
    return {line['step']: line for line in lines if 'loss' in line}


def label_maps(folder):
    return np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])


def schedules(runner):
    """Trains, and gives the token schedule of each forward pass in training, and of each in evaluation."""
    seen = []

    def note(module, args):
        seen.append((module.training, module.token_reducer.token_schedule((4, 4), 4)))

    handle = runner.model.backbone.register_forward_pre_hook(note)
    runner.train()
    handle.remove()
    return [counts for training, counts in seen if training], [counts for training, counts in seen if not training]


def test_training_logs_one_loss_a_module_and_moves_the_queries(cropr, make_runner, tmp_path):
    runner = make_runner(cropr)
    before = {name: p.clone() for name, p in runner.model.named_parameters()}
    runner.train()
    logged = log(tmp_path / 'work')
    for line in logged.values():
        names = {name for name in line if name.startswith('reducer.')}
        assert names == {'reducer.layer_00.loss_ce', 'reducer.layer_01.loss_ce'}
        parts = [value for name, value in line.items() if 'loss' in name and name != 'loss']
        assert line['loss'] == pytest.approx(sum(parts), rel=1e-4)
    assert all(not torch.equal(p, before[name]) for name, p in runner.model.named_parameters() if 'reducer' in name)


@pytest.mark.slow
def test_rate_rises_in_training_alone_and_a_resumed_run_goes_on_with_it(cropr, make_runner, tmp_path):
    cropr.custom_hooks[0].end = 0.75
    whole, evaluated = schedules(make_runner(cropr))
    # A third of 5 and of 10, two thirds, all.
    assert whole == [[16, 16, 16, 16], [16, 14, 13, 16], [16, 13, 9, 16], [16, 11, 6, 16]]
    assert evaluated == [[16, 11, 6, 16]] * 12
    cropr.update(load_from=str(tmp_path / 'work' / 'iter_2.pth'), resume=True, work_dir=str(tmp_path / 'resumed'))
    assert schedules(make_runner(cropr))[0] == whole[2:]


@pytest.mark.slow
def test_rate_by_epoch_stays_during_an_epoch(cropr, make_runner):
    cropr.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=4, val_interval=9)
    cropr.train_dataloader.sampler = dict(type='DefaultSampler', shuffle=True)
    cropr.param_scheduler = None
    cropr.custom_hooks[0].by_epoch = True
    cropr.default_hooks.checkpoint = None
    trained, _ = schedules(make_runner(cropr))
    # Three iterations an epoch; the rates are 0, 1/2, 1, 1.
    assert [counts[2] for counts in trained] == [16] * 3 + [11] * 3 + [6] * 6


@pytest.mark.slow
@pytest.mark.parametrize(
    'change, words',
    [
        (dict(custom_hooks=[dict(type='mmtr.ReductionCurriculumHook', end=0)]), 'end=0 must be a share of training'),
        (
            dict(custom_hooks=[dict(type='mmtr.ReductionCurriculumHook', by_epoch=True)]),
            'by_epoch=True, but training is',
        ),
        (dict(model=dict(backbone=dict(token_reduction=None))), 'needs a model that reduces tokens'),
        (dict(model=dict(type='EncoderDecoder')), "train it with type='mmtr.EncoderDecoder'"),
        (dict(model=dict(backbone=dict(token_reduction=dict(num_classes=3)))), 'num_classes=3, but the model has 4'),
        (
            dict(model=dict(backbone=dict(token_reduction=dict(task='multilabel')))),
            'needs gt_instances in the training',
        ),
    ],
)
def test_what_cannot_train_is_one_sentence(change, words, config, tool, tmp_path):
    (tmp_path / 'changed.py').write_text("_base_ = 'tiny.py'\n" + '\n'.join(f'{k} = {v}' for k, v in change.items()))
    status, said = tool('train', tmp_path / 'changed.py')
    assert status == 2 and said.count('\n') == 1 and words in said


@pytest.mark.slow
def test_deployed_model_gives_the_same_predictions(config, tool, tmp_path, capsys):
    assert tool('train', config)[0] == 0
    checkpoint, out = tmp_path / 'work' / 'iter_4.pth', tmp_path / 'small' / 'small.pth'
    deploy(config, checkpoint, out)
    said = capsys.readouterr().out
    assert 'Largest difference of the features of random images, as a share: 0\n' in said and '-m mmtr test ' in said
    weights = torch.load(out, weights_only=True)['state_dict']
    assert sorted(name for name in weights if 'reducer' in name) == [
        f'backbone.token_reducer.scorers.layer_0{i}' for i in range(2)
    ]
    assert out.stat().st_size < checkpoint.stat().st_size / 3
    for name, (file, weights) in dict(a=(config, checkpoint), b=(out.with_suffix('.py'), out)).items():
        assert tool('test', file, weights, '--out', tmp_path / name)[0] == 0
    assert (label_maps(tmp_path / 'a') == label_maps(tmp_path / 'b')).all()

    status, said = tool('test', out.with_suffix('.py'), checkpoint)
    assert status == 2 and 'convert it with tools/deploy_model.py' in said
    status, said = tool('test', config, out)
    assert status == 2 and 'was written by tools/deploy_model.py' in said
    status, said = tool('train', config, '--cfg-options', f'load_from={out}', f'work_dir={tmp_path / "again"}')
    assert status == 2 and 'was written by tools/deploy_model.py' in said
    with pytest.raises(UserError, match='convert it with tools/deploy_model.py'):
        load_weights(build_model(Config.fromfile(out.with_suffix('.py'))), checkpoint)


def test_what_is_deployed_can_be_moved_and_takes_options(config, tool, tmp_path):
    # Of a folder with a base beside it, and of a model that only the option makes that of the checkpoint.
    inner = tmp_path / 'configs' / 'own.py'
    inner.parent.mkdir()
    inner.write_text("_base_ = '../tiny.py'\nload_from = 'gone.pth'\nmodel = dict(decode_head=dict(num_layers=2))\n")
    option = 'model.decode_head.num_layers=1'
    model = build_model(Config.fromfile(config))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'trained.pth')
    deploy(
        inner,
        tmp_path / 'trained.pth',
        tmp_path / 'out' / 'small.pth',
        '--cfg-options',
        option,
        'test_dataloader.batch_size=2',
    )
    moved = (tmp_path / 'out').rename(tmp_path / 'elsewhere')
    for path in (inner, config, tmp_path / 'trained.pth'):
        path.unlink()
    cfg = Config.fromfile(moved / 'small.py')
    assert cfg.test_dataloader.batch_size == 2 and cfg.model.decode_head.num_layers == 1 and cfg.load_from is None
    assert tool('test', moved / 'small.py', moved / 'small.pth') == (0, '')


@pytest.mark.parametrize(
    'edit, out, words',
    [
        ('', 'small.bin', 'OUT must end in .pth or .safetensors'),
        ('', 'tiny.pth', "tiny.py' would be overwritten"),
        (
            "model['backbone']['token_reduction'] = None",
            'small.pth',
            "no model.backbone.token_reduction of type 'Cropr'",
        ),
        ("model['backbone']['token_reduction']['deploy'] = True", 'small.pth', 'deploy=True already'),
        ('', 'small.pth', 'gone.pth'),
    ],
)
def test_what_cannot_be_deployed_is_one_sentence(edit, out, words, config, tmp_path, capsys):
    config.write_text(f'{config.read_text()}\n{edit}\n')
    with pytest.raises(SystemExit) as stop:
        deploy(config, tmp_path / 'gone.pth', tmp_path / out)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and words in said and said.count('\n') == 1
    assert not (tmp_path / 'small.pth').exists()


def test_a_detector_logs_the_losses_too():
    pytest.importorskip('mmdet')
    from mmdet.structures import DetDataSample

    import mmtr.models.detectors  # noqa: F401

    cfg = get_config('mmdet::_base_/models/cascade-rcnn_r50_fpn.py').model
    cfg.type = 'mmtr.CascadeRCNN'
    cfg.backbone = dict(
        type='mmtr.VisionTransformer',
        img_size=64,
        embed_dims=32,
        num_layers=4,
        num_heads=2,
        out_indices=(1, 3),
        token_reduction=dict(type='Cropr', task='multilabel', num_classes=80),
    )
    cfg.neck.update(in_channels=[32, 32], num_outs=2)
    cfg.rpn_head.anchor_generator.strides = cfg.roi_head.bbox_roi_extractor.featmap_strides = [16, 16]
    cfg.rpn_head.anchor_generator.scales = [2]
    with DefaultScope.overwrite_default_scope('mmdet'):
        model = MODELS.build(cfg).train()
        sample = DetDataSample(
            metainfo=dict(img_shape=(64, 64), pad_shape=(64, 64)),
            gt_instances=InstanceData(bboxes=torch.tensor([[4.0, 4.0, 40.0, 40.0]]), labels=torch.tensor([5])),
        )
        losses = model(torch.randn(1, 3, 64, 64), [sample], mode='loss')
        assert {name for name in losses if name.startswith('reducer.')} == {
            'reducer.layer_00.loss_bce',
            'reducer.layer_01.loss_bce',
        }
        assert 's2.loss_bbox' in losses
        cfg.backbone.token_reduction.num_classes = 20
        with pytest.raises(UserError, match='num_classes=20, but the model has 80 classes'):
            MODELS.build(cfg)
