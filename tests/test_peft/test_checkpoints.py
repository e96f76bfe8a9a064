"""Training with a ``peft`` through the runner and the tools, and checkpoints that hold only what was tuned."""

import json
import os

import pytest
import torch

from mmtr.inference.model import build_model, load_weights
from mmtr.models.backbones import VisionTransformer
from mmtr.weights.files import read_checkpoint

from .tuned_runs import DAR, TUNED, changed, frozen


@pytest.mark.slow
@pytest.mark.parametrize(
    'peft, constructor, paramwise',
    [
        (DAR, None, None),
        (DAR, 'mmtr.TrainableConstructor', None),
        (
            dict(type='LoRA', targets='.*'),
            'mmtr.TrainableConstructor',
            dict(norm_decay_mult=0.0, custom_keys=dict(decode_head=dict(lr_mult=2.0))),
        ),
        (dict(type='Adapter'), 'mmtr.LayerDecayConstructor', dict(decay_rate=0.9)),
    ],
)
def test_frozen_weights_are_bit_identical_after_training(tuned, make_runner, peft, constructor, paramwise):
    tuned.model.backbone.peft = peft
    tuned.optim_wrapper.optimizer.update(lr=0.1, weight_decay=0.5)
    if constructor:
        tuned.optim_wrapper.update(constructor=constructor, paramwise_cfg=paramwise)
    tuned.default_hooks.checkpoint = None
    runner = make_runner(tuned)
    before = {name: p.clone() for name, p in runner.model.named_parameters()}
    pretrained = read_checkpoint(tuned.model.backbone.init_cfg.checkpoint)['state_dict']
    runner.train()
    after = frozen(runner.model)
    assert after.keys() == {f'backbone.{name}' for name in pretrained}
    assert all(torch.equal(value, pretrained[name.removeprefix('backbone.')]) for name, value in after.items())
    trained = [(name, p) for name, p in runner.model.named_parameters() if name.startswith(TUNED)]
    assert all(not torch.equal(p, before[name]) for name, p in trained)
    groups = runner.optim_wrapper.optimizer.param_groups
    if constructor:
        assert {id(p) for group in groups for p in group['params']} == {id(p) for _, p in trained}


@pytest.mark.slow
def test_log_has_the_losses_and_a_table_of_what_is_trained(tuned, make_runner, tmp_path):
    make_runner(tuned).train()
    lines = [
        json.loads(line)
        for file in (tmp_path / 'work').glob('*/vis_data/scalars.json')
        for line in file.read_text().splitlines()
    ]
    losses = [line for line in lines if 'loss' in line]
    assert len(losses) == 4
    for line in losses:
        assert line['loss'] == pytest.approx(line['reducer.loss_budget'] + line['decode.loss_ce'], rel=1e-4)
        assert line['reducer.loss_budget'] <= 0.5 and 0 < line['reducer.selected'] < 1
    text = next((tmp_path / 'work').glob('*/*.log')).read_text()
    table = text[text.index('Parameters:\n') :].splitlines()
    assert table[1].split() == ['module', 'trainable', 'frozen', 'trainable', '%']
    branch = 2 * (32 * 5 + 5 + 5 * 32 + 32 + 32 * 3 + 3 + 9 * 3 + 3 + 3 * 3 + 3 + 3 * 32 + 32 + 1)
    assert any(line.split() == ['backbone.peft', f'{branch:,}', '0', '100.00'] for line in table)


def test_checkpoint_holds_what_was_tuned_and_loads_with_its_base(tuned, make_runner, tmp_path):
    tuned.model.decode_head = dict(
        type='FCNHead', in_channels=32, in_index=-1, channels=8, num_classes=4, norm_cfg=dict(type='BN')
    )
    runner = make_runner(tuned)
    runner.train()
    path = tmp_path / 'work' / 'iter_4.pth'
    checkpoint = read_checkpoint(path)
    state, model = checkpoint['state_dict'], runner.model.eval()
    assert state.keys() == {name for name in model.state_dict() if name.startswith(TUNED)}
    assert 'decode_head.convs.0.bn.running_mean' in state
    assert {n for n, p in model.named_parameters() if p.requires_grad} <= state.keys()
    loaded = build_model(tuned)
    load_weights(loaded, str(path))
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        for out, expected in zip([*loaded.backbone(x), loaded(x)], [*model.backbone(x), model(x)]):
            assert torch.equal(out, expected)


def test_size_of_a_checkpoint_of_vit_b_is_that_of_what_was_tuned(tmp_path):
    from mmtr.weights.tuned import take_out_frozen

    model = VisionTransformer(
        img_size=224,
        embed_dims=768,
        num_layers=12,
        num_heads=12,
        final_norm=True,
        token_reduction=dict(type='DAR'),
        peft=dict(type='DAR'),
    )
    checkpoint = dict(state_dict=model.state_dict(), meta={})
    take_out_frozen(model, checkpoint)
    torch.save(checkpoint, tmp_path / 'small.pth')
    assert sum(value.numel() for value in checkpoint['state_dict'].values()) == 2_348_664
    # Of 352 MB; names, shapes and the fingerprint of 150 weights take the rest.
    assert 4 * 2_348_664 < os.path.getsize(tmp_path / 'small.pth') < 4 * 2_348_664 + 250_000


@pytest.mark.slow
def test_tools_train_test_and_resume_with_the_key_alone(config, tool, tmp_path):
    assert tool('train', config) == (0, '')
    work = tmp_path / 'work'
    assert all(name.startswith(TUNED) for name in read_checkpoint(work / 'iter_4.pth')['state_dict'])
    trained = len([n for n in read_checkpoint(work / 'iter_4.pth')['state_dict']])
    assert len(read_checkpoint(work / 'iter_4.pth')['optimizer']['state']) == trained
    assert tool('train', config, '--work-dir', tmp_path / 'again', '--resume', work / 'iter_2.pth') == (0, '')
    whole, resumed = (read_checkpoint(folder / 'iter_4.pth') for folder in (work, tmp_path / 'again'))
    for name, value in whole['state_dict'].items():
        assert torch.equal(value, resumed['state_dict'][name]), name
    for key, state in whole['optimizer']['state'].items():
        assert torch.equal(state['exp_avg'], resumed['optimizer']['state'][key]['exp_avg'])
    assert tool('test', config, work / 'iter_4.pth')[0] == 0
    assert tool('test', config, work / 'iter_4.pth', '--tta')[0] == 0


@pytest.mark.slow
def test_trained_on_from_a_checkpoint_of_what_was_tuned(config, tool, tmp_path):
    assert tool('train', config) == (0, '')
    start = tmp_path / 'work' / 'iter_4.pth'
    on = changed(
        config,
        'on.py',
        f"load_from = '{start}'\nwork_dir = '{tmp_path / 'on'}'\noptim_wrapper = dict(optimizer=dict(lr=0.))",
    )
    assert tool('train', on) == (0, '')
    before, after = (read_checkpoint(path)['state_dict'] for path in (start, tmp_path / 'on' / 'iter_4.pth'))
    assert all(torch.equal(value, after[name]) for name, value in before.items() if name.startswith('backbone.'))


@pytest.mark.slow
def test_training_needs_something_to_freeze(config, tool):
    file = changed(config, 'none.py', 'model = dict(backbone=dict(init_cfg=None))')
    status, said = tool('train', file)
    assert status == 2 and 'there are none to freeze: set model.backbone.pretrained' in said
    file = changed(
        config,
        'plain.py',
        "model = dict(backbone=dict(peft=None))\ncustom_hooks = [dict(type='mmtr.PEFTCheckpointHook')]",
    )
    status, said = tool('train', file)
    assert status == 2 and 'needs a model whose backbone has a peft' in said
