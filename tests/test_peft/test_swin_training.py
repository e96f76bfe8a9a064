"""``peft`` of a Swin through the runner and the tools: what is loaded, trained, kept and deployed."""

import pytest
import torch
from mmengine.config import Config
from mmengine.hub import get_config

from mmtr import UserError
from mmtr.inference.model import build_model, load_weights
from mmtr.models.backbones import SwinTransformer
from mmtr.weights.files import read_checkpoint
from mmtr.weights.tuned import check_pretrained, take_out_frozen

from .swin_settings import RATES, TINY, TUNED
from .tuned_runs import changed, deploy


def base_file(path, seed=0, without=()):
    """A file as of a classifier: a norm and a head after the last stage, and no norms of outputs."""
    torch.manual_seed(seed)
    backbone = SwinTransformer(**TINY)
    backbone.init_weights()
    state = {
        name: value
        for name, value in backbone.state_dict().items()
        if not name.startswith('norm') and name not in without
    }
    torch.save(dict(state_dict={**state, 'norm.weight': torch.ones(16), 'head.bias': torch.zeros(9)}), path)
    return str(path)


@pytest.mark.parametrize('pretrained', [False, True])
def test_init_weights_leaves_the_branches_at_zero_and_fills_the_rest(tmp_path, pretrained):
    init = dict(type='Pretrained', checkpoint=base_file(tmp_path / 'base.pth')) if pretrained else None
    model = SwinTransformer(**TINY, peft=dict(type='DAR'), init_cfg=init)
    for parameter in model.peft.parameters():
        torch.nn.init.ones_(parameter)
    model.init_weights()
    assert all(not each.up.weight.any() for each in [*model.peft.adapters, *model.peft.compensators])
    assert all(scale.weight.item() == 2 for scale in model.peft.scales)
    own = model.state_dict()
    assert own['norm0.weight'].eq(1).all() and not own['norm1.bias'].any()
    base = torch.load(tmp_path / 'base.pth')['state_dict'] if pretrained else {}
    assert all(torch.equal(own[name], value) for name, value in base.items() if name in own)


@pytest.fixture
def config(tiny_segmenter, tmp_path):
    """Path of the config file of a segmentor whose Swin is frozen but for a LoRA."""
    cfg = tiny_segmenter
    cfg.model.backbone = dict(
        type='mmtr.SwinTransformer',
        **TINY,
        **RATES,
        peft=dict(type='LoRA', targets='.*'),
        init_cfg=dict(type='Pretrained', checkpoint=base_file(tmp_path / 'base.pth')),
    )
    cfg.model.decode_head = dict(
        type='FCNHead',
        in_channels=[8, 16],
        in_index=[0, 1],
        input_transform='resize_concat',
        channels=8,
        num_convs=1,
        num_classes=4,
        norm_cfg=dict(type='BN'),
    )
    cfg.optim_wrapper.optimizer.update(lr=0.1, weight_decay=0.5)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    cfg.randomness = dict(seed=0)
    cfg.dump(str(tmp_path / 'tuned.py'))
    return tmp_path / 'tuned.py'


@pytest.mark.slow
@pytest.mark.parametrize(
    'peft', [dict(type='LoRA', targets='.*'), dict(type='DAR', bottleneck=5, compensator=3)], ids=str
)
def test_only_what_is_tuned_changes_is_kept_and_loads_with_its_base(config, make_runner, tool, tmp_path, peft):
    base = read_checkpoint(tmp_path / 'base.pth')['state_dict']
    cfg = Config.fromfile(config)
    cfg.model.backbone.peft = peft
    cfg.optim_wrapper.constructor = 'mmtr.TrainableConstructor'
    cfg.custom_hooks = [dict(type='mmtr.PEFTCheckpointHook')]
    runner = make_runner(cfg)
    before = {name: p.clone() for name, p in runner.model.named_parameters()}
    runner.train()
    model, state = runner.model.eval(), read_checkpoint(tmp_path / 'work' / 'iter_2.pth')['state_dict']
    own = {name: value for name, value in model.backbone.state_dict().items() if not name.startswith(TUNED)}
    assert own.keys() == base.keys() - {'norm.weight', 'head.bias'}
    assert all(torch.equal(value, base[name]) for name, value in own.items())
    assert state.keys() == {
        name
        for name in model.state_dict()
        if name.startswith(('decode_head.', *(f'backbone.{part}' for part in TUNED)))
    }
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in state)
    loaded = build_model(cfg)
    load_weights(loaded, str(tmp_path / 'work' / 'iter_2.pth'))
    x = torch.rand(2, 3, 64, 76)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))


@pytest.mark.slow
def test_tools_train_resume_test_and_refuse_another_base(config, tool, tmp_path):
    assert tool('train', config) == (0, '')
    checkpoint = tmp_path / 'work' / 'iter_2.pth'
    on = changed(config, 'on.py', 'train_cfg = dict(max_iters=3)')
    assert tool('train', on, '--work-dir', tmp_path / 'on', '--resume', checkpoint) == (0, '')
    assert len(read_checkpoint(tmp_path / 'on' / 'iter_3.pth')['optimizer']['state']) == sum(
        'running' not in name and 'num_batches' not in name for name in read_checkpoint(checkpoint)['state_dict']
    )
    assert tool('test', config, checkpoint)[0] == 0
    other = base_file(tmp_path / 'other.pth', seed=1)
    partly = base_file(tmp_path / 'partly.pth', without=['stages.1.blocks.0.norm1.weight'])
    setting = 'model = dict(backbone=dict(init_cfg=dict(checkpoint={!r})))'
    for name, text, words in (
        ('other', setting.format(other), f"the pretrained file '{other}' is not the one that it was tuned with: "),
        (
            'partly',
            setting.format(partly),
            f"Checkpoint '{partly}' is not of this SwinTransformer: it differs in 1 weights ",
        ),
        ('none', 'model = dict(backbone=dict(init_cfg=None))', 'does not say where the frozen weights are'),
        ('rank', 'model = dict(backbone=dict(peft=dict(rank=2)))', 'was tuned with another peft'),
    ):
        status, said = tool('test', changed(config, f'{name}.py', text), checkpoint)
        assert status == 2 and said.count('\n') == 1 and words in said, (name, said)
    with pytest.raises(UserError, match='there are none to freeze'):
        check_pretrained(build_model(Config.fromfile(tmp_path / 'none.py')))


@pytest.mark.slow
def test_deployed_file_is_whole_and_needs_no_base(config, tool, tmp_path):
    assert tool('train', config) == (0, '')
    deploy(config, tmp_path / 'work' / 'iter_2.pth', tmp_path / 'small.pth')
    trained, small = build_model(Config.fromfile(config)), build_model(Config.fromfile(tmp_path / 'small.py'))
    load_weights(trained, str(tmp_path / 'work' / 'iter_2.pth'))
    (tmp_path / 'base.pth').unlink()
    load_weights(small, str(tmp_path / 'small.pth'))
    assert small.backbone.peft is None and not any('peft' in name for name in small.state_dict())
    x = torch.rand(2, 3, 64, 76)
    with torch.no_grad():
        torch.testing.assert_close(small(x), trained(x), atol=1e-4, rtol=1e-3)
        trained.backbone.peft.init_weights()
        assert not torch.allclose(small(x), trained(x), atol=1e-3)


def test_a_detector_of_mmdet_is_tuned_alike(tmp_path):
    cfg = get_config('mmdet::swin/retinanet_swin-t-p4-w7_fpn_1x_coco.py')
    cfg.model.backbone.update(
        type='mmtr.SwinTransformer',
        embed_dims=8,
        depths=(1, 1, 2, 1),
        num_heads=(1, 1, 2, 2),
        window_size=3,
        peft=dict(type='Adapter', bottleneck=3),
        init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'base.pth')),
    )
    cfg.model.neck.update(in_channels=[16, 32, 64], out_channels=16)
    cfg.model.bbox_head.update(in_channels=16, feat_channels=16, stacked_convs=1)
    model = build_model(cfg)
    torch.save(
        {n: v for n, v in model.backbone.state_dict().items() if not n.startswith('peft.')}, tmp_path / 'base.pth'
    )
    torch.nn.init.normal_(model.backbone.peft.adapters[3].up.weight)
    checkpoint = dict(state_dict=model.state_dict(), meta={})
    take_out_frozen(model, checkpoint)
    # Outputs are stages 2 to 4.
    assert {name.split('.')[1] for name in checkpoint['state_dict'] if name.startswith('backbone.')} == {
        'peft',
        'norm1',
        'norm2',
        'norm3',
    }
    torch.save(checkpoint, tmp_path / 'tuned.pth')
    loaded, x = build_model(cfg), torch.rand(1, 3, 64, 96)
    load_weights(loaded, str(tmp_path / 'tuned.pth'))
    with torch.no_grad():
        torch.testing.assert_close(loaded(x, mode='tensor'), model(x, mode='tensor'), atol=0, rtol=0)
