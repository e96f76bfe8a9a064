"""Training with a ``peft`` through the runner and the tools, and checkpoints that hold only what was tuned."""

import copy
import json
import os
import runpy

import pytest
import torch
from mmengine.config import Config

from mmtr import UserError
from mmtr.inference.model import build_model, load_weights
from mmtr.models.backbones import VisionTransformer
from mmtr.weights.files import read_checkpoint
from mmtr.weights.tuned import META

from ..conftest import TOOLS

TUNED = ('backbone.peft.', 'backbone.token_reducer.', 'decode_head.')
DAR = dict(type='DAR', bottleneck=5, compensator=3)


def base_file(path, seed=0, **settings):
    """A pretrained file of the backbone in ``tiny_segmenter``."""
    torch.manual_seed(seed)
    backbone = VisionTransformer(
        **{
            **dict(
                img_size=(64, 64), patch_size=16, embed_dims=32, num_layers=2, num_heads=2, mlp_ratio=2, final_norm=True
            ),
            **settings,
        }
    )
    backbone.init_weights()
    torch.save(dict(state_dict=backbone.state_dict()), path)
    return str(path)


@pytest.fixture
def tuned(tiny_segmenter, tmp_path):
    """Config of a Segmenter whose backbone is frozen but for a DAR branch, and reduced by DAR."""
    cfg = tiny_segmenter
    cfg.model.type = 'mmtr.EncoderDecoder'
    cfg.model.backbone.update(
        type='mmtr.VisionTransformer',
        peft=DAR,
        token_reduction=dict(type='DAR'),
        init_cfg=dict(type='Pretrained', checkpoint=base_file(tmp_path / 'base.pth')),
    )
    cfg.custom_hooks = [dict(type='mmtr.PEFTCheckpointHook')]
    return cfg


@pytest.fixture
def config(tuned, tmp_path):
    """Path of the config file of ``tuned``, without what the tools add by themselves."""
    tuned.custom_hooks = []
    tuned.dump(str(tmp_path / 'tuned.py'))
    return tmp_path / 'tuned.py'


def changed(config, name, text):
    """Path of a config beside ``config`` that inherits from it."""
    path = config.with_name(name)
    path.write_text(f"_base_ = '{config.name}'\n{text}\n")
    return path


def frozen(model):
    return {
        name: value.clone()
        for name, value in model.state_dict().items()
        if name.startswith('backbone.') and not name.startswith(TUNED)
    }


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
def test_what_does_not_fit_is_one_sentence(config, tool, tmp_path):
    assert tool('train', config) == (0, '')
    checkpoint = tmp_path / 'work' / 'iter_4.pth'
    other = base_file(tmp_path / 'other.pth', seed=1)
    base = 'model = dict(backbone=dict(init_cfg=dict(checkpoint={!r})))'
    for name, text, words in (
        (
            'gone',
            base.format(str(tmp_path / 'gone.pth')),
            f"needs the pretrained file of training: Checkpoint '{tmp_path / 'gone.pth'}' is not there",
        ),
        ('other', base.format(other), f"the pretrained file '{other}' is not the one that it was tuned with: "),
        ('none', 'model = dict(backbone=dict(init_cfg=None))', 'does not say where the frozen weights are'),
        (
            'wide',
            'model = dict(backbone=dict(peft=dict(bottleneck=6)))',
            'such as backbone.peft.adapters.0.down.weight, (5, 32) in the file and (6, 32) in the model',
        ),
        (
            'type',
            "model = dict(backbone=dict(peft=dict(_delete_=True, type='Adapter', bottleneck=5)))",
            'such as backbone.peft.compensators.0.',
        ),
        ('whole', 'model = dict(backbone=dict(token_reduction=None))', 'such as backbone.token_reducer.selectors.0.'),
        (
            'plain',
            'model = dict(backbone=dict(token_reduction=None, peft=None))',
            'the model of this config has no peft',
        ),
    ):
        file = changed(config, f'{name}.py', text)
        status, said = tool('test', file, checkpoint)
        assert status == 2 and said.count('\n') == 1 and words in said, (name, said)
        if name not in ('plain',):
            status, said = tool('train', file, '--work-dir', tmp_path / 'x', '--cfg-options', f'load_from={checkpoint}')
            assert status == 2 and said.count('\n') == 1, (name, said)
            if name not in ('gone', 'none'):
                assert words in said
        with pytest.raises(UserError) as error:
            load_weights(build_model(Config.fromfile(file)), str(checkpoint))
        assert words in str(error.value)


@pytest.mark.slow
def test_start_from_a_whole_model_of_other_weights(config, tool, tmp_path):
    plain = changed(
        config,
        'plain.py',
        f"model = dict(backbone=dict(token_reduction=None, peft=None))\nwork_dir = '{tmp_path / 'plain'}'",
    )
    assert tool('train', plain) == (0, '')
    whole = tmp_path / 'plain' / 'iter_4.pth'
    status, said = tool('train', config, '--cfg-options', f'load_from={whole}')
    assert status == 2 and f"checkpoint='{whole}', prefix='backbone')" in said and said.count('\n') == 1
    as_said = changed(
        config,
        'prefix.py',
        f"model = dict(backbone=dict(init_cfg=dict(checkpoint='{whole}', prefix='backbone')))\nload_from = '{whole}'",
    )
    assert tool('train', as_said) == (0, '')
    tuned, state = build_model(Config.fromfile(as_said)), read_checkpoint(whole)['state_dict']
    load_weights(tuned, str(tmp_path / 'work' / 'iter_4.pth'))
    assert all(torch.equal(value, state[name]) for name, value in frozen(tuned).items())


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


def test_another_rounding_is_the_same_base_and_a_finetuned_one_is_not(tuned, tmp_path):
    from mmtr.weights.tuned import put_in_frozen, take_out_frozen

    model = build_model(tuned)
    model.backbone.init_weights()
    checkpoint = dict(state_dict=model.state_dict(), meta={})
    take_out_frozen(model, checkpoint)
    model.backbone.init_cfg = None  # or it would load the file again
    assert checkpoint['state_dict']._metadata['backbone'][META]['pos_embed'].shape == (16,)
    with torch.no_grad():
        for parameter in model.backbone.layers.parameters():
            parameter.mul_(1 + 1e-6)
        put_in_frozen(model, copy.deepcopy(checkpoint), 'tuned.pth')
        model.backbone.layers[1].ffn.layers[1].weight.add_(0.001)
    with pytest.raises(UserError, match='does not say where'):
        put_in_frozen(model, copy.deepcopy(checkpoint), 'tuned.pth')


def test_files_with_the_fingerprint_in_meta_load_too(tuned, tmp_path):
    from mmtr.weights.tuned import fingerprint, take_out_frozen

    model = build_model(tuned)
    model.backbone.init_weights()
    checkpoint = dict(state_dict=model.state_dict(), meta={})
    take_out_frozen(model, checkpoint)
    path, other = str(tmp_path / 'older.pth'), base_file(tmp_path / 'other.pth', seed=1)
    torch.save(dict(state_dict=dict(checkpoint['state_dict']), meta={META: fingerprint(frozen(model))}), path)
    loaded = build_model(tuned)
    load_weights(loaded, path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    tuned.model.backbone.init_cfg.checkpoint = other
    with pytest.raises(UserError, match='is not the one that it was tuned with'):
        load_weights(build_model(tuned), path)


def deploy(*args):
    runpy.run_path(str(TOOLS / 'deploy_model.py'))['main'](list(map(str, args)))


@pytest.mark.slow
@pytest.mark.parametrize('peft', [dict(type='LoRA', targets='.*'), DAR], ids=str)
def test_deployed_file_is_whole_and_needs_no_base(formatted, tuned, tool, tmp_path, peft):
    tuned.model.backbone.peft = peft
    tuned.custom_hooks = []
    config = tmp_path / 'tuned.py'
    tuned.optim_wrapper.optimizer.lr = 0.2
    tuned.randomness = dict(seed=0)
    tuned.dump(str(config))
    assert tool('train', config) == (0, '')
    deploy(config, tmp_path / 'work' / 'iter_4.pth', tmp_path / 'out' / 'small.pth')
    written = tmp_path / 'out' / 'small.py'
    assert '_base_' not in written.read_text() and 'base.pth' not in written.read_text()
    trained = build_model(Config.fromfile(config))
    load_weights(trained, str(tmp_path / 'work' / 'iter_4.pth'))
    (tmp_path / 'base.pth').unlink()
    config.unlink()
    small = build_model(Config.fromfile(written))
    load_weights(small, str(tmp_path / 'out' / 'small.pth'))
    assert any('peft' in name for name in small.state_dict()) == (peft is DAR)
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(small(x), trained(x), atol=1e-4, rtol=1e-4)
        trained.backbone.peft.init_weights()
        assert not torch.allclose(small(x), trained(x), atol=1e-3)
    assert tool('test', written, tmp_path / 'out' / 'small.pth')[0] == 0
