"""Healing: its losses, its teacher, training without labels, resuming, and what is refused."""

import copy
import math

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from mmtr import UserError, apply_token_reduction
from mmtr.engine.hooks import HealingHook
from mmtr.models.distillation.healing import Healing, divergence, heads_in_eval, once, relative_error
from mmtr.weights.files import read_checkpoint

REDUCTION = dict(type='GridPool', layers=(1, 2), ratio=0.5)


@pytest.fixture
def healed(tiny_segmenter, tmp_path):
    """Config of a stock Segmenter on mmtr's backbone, which a hook heals from the weights of a file."""
    cfg = tiny_segmenter
    cfg.model.backbone.update(type='mmtr.VisionTransformer', drop_path_rate=0.0)
    torch.manual_seed(0)
    model = built(cfg)
    model.init_weights()
    with torch.no_grad():
        for parameter in model.backbone.layers.parameters():
            parameter.mul_(2)  # branches that matter as much as those of a trained model
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'start.pth')
    cfg.model.backbone.token_reduction = REDUCTION
    cfg.load_from = str(tmp_path / 'start.pth')
    cfg.custom_hooks = [dict(type='mmtr.HealingHook')]
    return cfg


def built(cfg):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(cfg.model)


def test_relative_error_is_the_squared_error_in_variances_of_the_channel():
    student, teacher = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    total = 0.0
    for c in range(3):
        values = teacher[:, c].flatten().tolist()
        mean = sum(values) / len(values)
        variance = sum((v - mean) ** 2 for v in values) / len(values)
        errors = [(a - b) ** 2 for a, b in zip(student[:, c].flatten().tolist(), values)]
        total += sum(errors) / len(errors) / variance / 3
    assert relative_error(student, teacher).item() == pytest.approx(total, rel=1e-4)
    scale = torch.tensor([1e-2, 1.0, 1e2]).view(3, 1, 1)
    assert relative_error(student * scale, teacher * scale).item() == pytest.approx(total, rel=2e-2)


def test_values_that_are_not_finite_count_for_nothing():
    student = torch.zeros(4, requires_grad=True)
    error = relative_error(student, torch.tensor([1.0, -1.0, math.inf, -math.inf]))
    error.backward()
    assert error.isfinite() and student.grad.isfinite().all() and student.grad[2:].eq(0).all()


@pytest.mark.parametrize('classes', [1, 5])
def test_divergence_is_that_of_the_probabilities(classes):
    student, teacher = torch.randn(2, classes, 3, 4), torch.randn(2, classes, 3, 4)
    total = 0.0
    for b, y, x in ((b, y, x) for b in range(2) for y in range(3) for x in range(4)):
        p, q = (
            each[b, :, y, x].softmax(0).tolist()
            if classes > 1
            else [(s := 1 / (1 + math.exp(-each[b, 0, y, x].item()))), 1 - s]
            for each in (teacher, student)
        )
        total += sum(a * math.log(a / c) for a, c in zip(p, q))
    assert divergence(student, teacher).item() == pytest.approx(total / 24, rel=1e-4)


def test_a_model_without_reduction_agrees_with_itself(healed):
    model = built(healed)
    apply_token_reduction(model, dict(type='GridPool', ratio=0.0))
    healing = Healing(apply_token_reduction(copy.deepcopy(model), None), 1.0, 1.0, False)
    losses = healing.losses(model, model.loss, torch.randn(2, 3, 64, 64), [])
    assert losses.keys() == {'healing.loss_features', 'healing.loss_logits'}
    assert max(loss.item() for loss in losses.values()) < 1e-8


def test_training_reads_no_labels_and_gets_nearer_to_the_teacher(healed, make_runner, tmp_path):
    healed.train_dataloader.dataset.pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
    healed.train_cfg.update(max_iters=12, val_interval=12)
    healed.optim_wrapper.optimizer.lr = 3e-5
    healed.default_hooks.checkpoint.interval = 12
    healed.param_scheduler = None
    runner = make_runner(healed)
    model = runner.model
    runner.train()
    start = read_checkpoint(tmp_path / 'start.pth')['state_dict']
    teacher = built(healed)
    apply_token_reduction(teacher, None)
    teacher.load_state_dict(start)
    batch = next(iter(runner.train_dataloader))
    images = model.data_preprocessor(batch)['inputs']
    healing = Healing(teacher, 1.0, 1.0, False)
    before = built(healed)
    before.load_state_dict(start)
    losses = [sum(healing.losses(m, None, images, []).values()).item() for m in (before, model.eval())]
    assert losses[1] < 0.9 * losses[0], losses
    saved = read_checkpoint(tmp_path / 'work' / 'iter_12.pth')
    assert saved['state_dict'].keys() == start.keys() and saved['meta']['healing_teacher'] == healed.load_from
    assert not hasattr(type(model), 'healing') and 'loss' not in vars(model)


def test_labels_add_the_losses_of_the_model(healed):
    model = built(healed)
    healing = Healing(apply_token_reduction(copy.deepcopy(model), None), 0.5, 0.0, True)
    calls = []

    def loss(inputs, samples):
        model.decode_head.forward(model.extract_feat(inputs))
        calls.append(model.training)
        return {'decode.loss_ce': torch.tensor(2.0)}

    losses = healing.losses(model, loss, torch.randn(2, 3, 64, 64), [])
    assert calls == [True] and losses.keys() == {'decode.loss_ce', 'healing.loss_features'}
    healing.features = 1.0
    twice = healing.losses(model, loss, torch.randn(2, 3, 64, 64), [])
    assert twice['healing.loss_features'] > 0


@pytest.mark.slow
def test_a_resumed_training_has_the_same_teacher(healed, tool, make_runner, tmp_path):
    config = tmp_path / 'healed.py'
    healed.dump(str(config))
    assert tool('train', config) == (0, '')
    whole = read_checkpoint(tmp_path / 'work' / 'iter_4.pth')['state_dict']
    status, said = tool('train', config, '--resume', tmp_path / 'work' / 'iter_2.pth', '--work-dir', tmp_path / 'again')
    assert (status, said) == (0, '')
    again = read_checkpoint(tmp_path / 'again' / 'iter_4.pth')
    assert again['meta']['healing_teacher'] == healed.load_from
    assert all(torch.equal(value, again['state_dict'][name]) for name, value in whole.items())


def test_methods_compute_once_and_are_put_back():
    class Counter:
        calls = 0

        def count(self):
            self.calls += 1
            return self.calls

    counter = Counter()
    with once(counter, 'count'), once(None, 'count'), once(counter, 'absent'):
        assert [counter.count(), counter.count()] == [1, 1]
    assert [counter.count(), counter.count()] == [2, 3] and vars(counter) == {'calls': 3}


def test_heads_are_in_eval_mode_and_the_backbone_is_not():
    model = nn.Module()
    model.backbone, model.head = nn.Sequential(nn.Dropout()), nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2).eval())
    with heads_in_eval(model):
        assert model.backbone[0].training and not model.head.training and not model.head[0].training
    assert model.head.training and model.head[0].training and not model.head[1].training


@pytest.mark.slow
@pytest.mark.parametrize(
    'change, words',
    [
        (dict(load_from=None), 'there is none: set load_from'),
        (
            dict(model=dict(backbone=dict(token_reduction=None))),
            'this one has none: set model.backbone.token_reduction',
        ),
        (
            dict(model=dict(backbone=dict(token_reduction=dict(type='Cropr', num_classes=4, _delete_=True)))),
            'Cropr learns from labels: set labels=True',
        ),
        (
            dict(
                model=dict(
                    type='mmtr.EncoderDecoder',
                    backbone=dict(
                        token_reduction=dict(type='Expediting', restore='copy', restore_at='after_head', _delete_=True)
                    ),
                )
            ),
            "restore_at='after_head': set features=0",
        ),
    ],
)
def test_what_cannot_be_healed_is_said(healed, make_runner, change, words):
    healed.merge_from_dict(change)
    with pytest.raises(UserError, match=words):
        make_runner(healed).train()


@pytest.mark.slow
def test_a_teacher_of_another_model_is_refused(healed, make_runner, tmp_path):
    state = read_checkpoint(healed.load_from)['state_dict']
    torch.save(dict(state_dict={**state, 'decode_head.cls_emb': torch.zeros(1, 7, 32)}), tmp_path / 'classes.pth')
    moved = {name: value + 0.1 if name.endswith('cls_token') else value for name, value in state.items()}
    torch.save(dict(state_dict=moved), tmp_path / 'moved.pth')
    for name, words in (
        ('classes', 'is not of the model that is healed: 1 of another shape'),
        ('moved', 'in 1 weights'),
    ):
        healed.custom_hooks[0].teacher = str(tmp_path / f'{name}.pth')
        with pytest.raises(UserError, match=words):
            make_runner(healed).train()


def test_settings_that_compare_nothing_are_refused():
    with pytest.raises(UserError, match='compare nothing'):
        HealingHook(features=0, logits=0)


@pytest.mark.slow
def test_a_stock_model_reduced_by_a_hook_is_healed(healed, make_runner):
    healed.model.backbone.type = 'VisionTransformer'
    healed.model.backbone.pop('token_reduction')
    healed.custom_hooks = [dict(type='mmtr.TokenReductionHook', token_reduction=REDUCTION), *healed.custom_hooks]
    healed.train_cfg.update(max_iters=1, val_interval=1)
    healed.param_scheduler = None
    runner = make_runner(healed)
    losses = []
    runner.register_hook(Noting(losses))
    runner.train()
    assert losses[0].keys() == {'loss', 'healing.loss_features', 'healing.loss_logits'} and losses[0]['loss'] > 1e-4


@pytest.mark.slow
def test_a_rising_reduction_trains_one_code(healed, make_runner):
    healed.model.backbone.token_reduction = {**REDUCTION, 'restore': 'learned'}
    healed.custom_hooks.append(dict(type='mmtr.ReductionCurriculumHook', end=1.0, steps=4))
    healed.train_cfg.update(max_iters=4, val_interval=4)
    runner = make_runner(healed)
    code, losses = runner.model.backbone.token_reducer.restoration, []
    runner.register_hook(Noting(losses))
    runner.train()
    assert losses[0]['loss'] < 1e-6 < losses[3]['loss']
    assert runner.model.backbone.token_reducer.restoration is code and code.decode.weight.abs().sum() > 0


@pytest.mark.slow
def test_lora_alone_is_trained_with_the_code_and_the_head(healed, make_runner):
    healed.model.backbone.update(
        peft=dict(type='LoRA'), init_cfg=dict(type='Pretrained', checkpoint=healed.load_from, prefix='backbone')
    )
    healed.model.backbone.token_reduction = {**REDUCTION, 'restore': 'learned'}
    runner = make_runner(healed)
    model = runner.model
    start = {name: value.clone() for name, value in read_checkpoint(healed.load_from)['state_dict'].items()}
    runner.train()
    found = model.state_dict()
    changed = {name for name, value in start.items() if not torch.equal(found[name], value)}
    assert changed and all(name.startswith('decode_head.') for name in changed)
    assert found['backbone.token_reducer.restoration.decode.weight'].abs().sum() > 0
    assert found['backbone.peft.layers.0.qkv.up.weight'].abs().sum() > 0


class Noting(Hook):
    """Notes the losses of each iteration."""

    def __init__(self, losses):
        self.losses = losses

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses.append({name: float(value) for name, value in outputs.items()})
