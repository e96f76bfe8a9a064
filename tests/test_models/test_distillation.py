"""Distillation from a frozen teacher: its loss, what it leaves alone, and that it does not collapse."""

import copy
import math
import runpy

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmtr import UserError
from mmtr.inference.model import build_model, load_weights
from mmtr.models.backbones import VisionTransformer
from mmtr.models.distillation import Distillation
from mmtr.weights.files import read_checkpoint

from ..conftest import TOOLS

SMALL = dict(img_size=(64, 64), patch_size=16, embed_dims=32, num_layers=2, num_heads=2, mlp_ratio=2, final_norm=True)
TEACHER = dict(type='mmtr.VisionTransformer', **SMALL)


@pytest.fixture
def distilled(tiny_segmenter, tmp_path):
    """Config of a Segmenter tuned by DAR and distilled from what its backbone was before."""
    torch.manual_seed(0)
    backbone = VisionTransformer(**SMALL)
    backbone.init_weights()
    torch.save(backbone.state_dict(), tmp_path / 'base.pth')
    cfg = tiny_segmenter
    cfg.model.update(type='mmtr.DistillationEncoderDecoder', distillation=dict(channels=24))
    cfg.model.backbone.update(
        type='mmtr.VisionTransformer',
        peft=dict(type='DAR', bottleneck=5, compensator=3),
        token_reduction=dict(type='DAR'),
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'base.pth')),
    )
    return cfg


def built(cfg):
    with DefaultScope.overwrite_default_scope('mmseg'):
        model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def test_loss_is_one_minus_the_cosine_of_each_patch(distilled):
    distillation = built(distilled).distillation
    images, features = torch.randn(2, 3, 64, 96), torch.randn(2, 32, 4, 6)
    plain = VisionTransformer(**SMALL).eval()
    plain.load_state_dict(torch.load(distilled.model.backbone.init_cfg.checkpoint))
    with torch.no_grad():
        target = plain(images)[-1]
        total = 0.0
        for b in range(2):
            for y in range(4):
                for x in range(6):
                    first, second = (
                        distillation.student_mlp(features[b, :, y, x]),
                        distillation.teacher_mlp(target[b, :, y, x]),
                    )
                    total += 1 - float(first @ second) / math.sqrt(float(first @ first) * float(second @ second))
    assert distillation(images, features).item() == pytest.approx(0.1 * total / 48, rel=1e-4)


@pytest.mark.slow
def test_teacher_is_in_nothing_but_the_loss(distilled, make_runner, tmp_path):
    runner = make_runner(distilled)
    model = runner.model
    assert not any('teacher.' in name for name, _ in model.named_parameters())
    assert {name.split('.')[1] for name in model.state_dict() if name.startswith('distillation.')} == {
        'student_mlp',
        'teacher_mlp',
    }
    teacher, start = model.distillation.teacher, copy.deepcopy(dict(model.distillation.named_parameters()))
    runner.train()
    base = torch.load(tmp_path / 'base.pth')
    assert all(torch.equal(value, base[name]) for name, value in teacher.state_dict().items())
    assert not any(module.training for module in teacher.modules())
    assert all(p.grad is None and not p.requires_grad for p in teacher.parameters())
    for name, parameter in model.distillation.named_parameters():
        assert torch.equal(parameter, start[name]) == name.startswith('teacher_mlp.')
    assert not any('teacher.' in name for name in read_checkpoint(tmp_path / 'work' / 'iter_4.pth')['state_dict'])


def test_teacher_moves_with_the_model_and_is_copied_with_it(distilled):
    model = built(distilled).double()
    assert model.distillation.teacher.cls_token.dtype == torch.double
    assert copy.deepcopy(model).distillation.teacher is not model.distillation.teacher


def test_gradient_reaches_the_student_alone(distilled):
    model = built(distilled).train()
    distillation = model.distillation
    distillation(torch.randn(1, 3, 64, 64), model.backbone.eval()(torch.randn(1, 3, 64, 64))[-1]).backward()
    assert all(p.grad.abs().sum() > 0 for p in distillation.student_mlp.parameters())
    assert all(p.grad is None for p in distillation.teacher_mlp.parameters())
    # The branches end in zeros: their last layers alone have a gradient yet.
    assert all(each.up.weight.grad.abs().sum() > 0 for each in model.backbone.peft.adapters)


def spread(features):
    """Variance of unit vectors (N, C) around their mean: 1 for directions all over, 0 for a constant."""
    unit = torch.nn.functional.normalize(features, dim=1)
    return float((unit - unit.mean(0)).square().sum(1).mean())


@pytest.mark.parametrize('stop_gradient', [True, False])
def test_only_the_original_collapses(stop_gradient):
    torch.manual_seed(0)
    plain = VisionTransformer(**SMALL).eval()
    distillation = Distillation(plain, TEACHER, channels=32, loss_weight=1.0, stop_gradient=stop_gradient)
    maps, images = torch.randn(8, 32, 4, 4), torch.zeros(8, 3, 64, 64)
    distillation._teacher = (lambda images: (maps,),)
    student = maps + 0.5 * torch.randn_like(maps)
    flat = [t.flatten(2).transpose(1, 2).flatten(0, 1) for t in (student, maps)]

    def spreads():
        with torch.no_grad():
            return [spread(mlp(x)) for mlp, x in zip((distillation.student_mlp, distillation.teacher_mlp), flat)]

    before = spreads()
    trained = [p for p in distillation.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    for _ in range(300):
        optimizer.zero_grad()
        distillation(images, student).backward()
        optimizer.step()
    after = spreads()
    if stop_gradient:
        assert after[1] == before[1] and after[0] > 0.5 * before[1]
    else:
        assert max(after) < 0.1 * min(before)


@pytest.mark.slow
def test_deployed_model_has_neither_teacher_nor_mlps(formatted, distilled, tool, tmp_path):
    config = tmp_path / 'distilled.py'
    distilled.model.distillation = dict()
    distilled.dump(str(config))
    assert tool('train', config) == (0, '')
    checkpoint, out = tmp_path / 'work' / 'iter_4.pth', tmp_path / 'small.pth'
    assert tool('test', config, checkpoint)[0] == 0
    runpy.run_path(str(TOOLS / 'deploy_model.py'))['main']([str(config), str(checkpoint), str(out)])
    written = out.with_suffix('.py')
    assert '_base_' not in written.read_text() and Config.fromfile(written).model.distillation is None
    models = [build_model(Config.fromfile(file)) for file in (config, written)]
    for model, file in zip(models, (checkpoint, out)):
        load_weights(model, str(file))
    assert not any('distillation' in name for name in read_checkpoint(out)['state_dict'])
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(models[0](x), models[1](x))
    assert tool('test', written, out)[0] == 0


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(teacher=dict(TEACHER, patch_size=8)), 'teacher.patch_size=8, but the patches of the student are 16'),
        (dict(teacher=dict(type='mmseg.ResNet', depth=18)), "teacher.type='mmseg.ResNet' must be a backbone of mmtr"),
        (dict(channels=0), 'distillation.channels=0'),
        (dict(loss_weight=0), 'distillation.loss_weight=0'),
        (dict(stop_gradient='yes'), "distillation.stop_gradient='yes'"),
        (dict(teacher=TEACHER), 'has random weights'),
    ],
)
def test_what_cannot_work_is_said_before_training(distilled, change, words):
    distilled.model.distillation.update(change)
    with pytest.raises(UserError, match=words):
        built(distilled)
