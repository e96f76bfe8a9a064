"""Training starts from what it was told to start from, or says what is wrong; never from random weights in silence."""

import copy

import pytest
import torch
from mmengine.registry import MODELS, DefaultScope

from mmtr import UserError

SIZES = dict(img_size=(64, 64), embed_dims=32, num_layers=2, num_heads=2)


def build(cfg):
    with DefaultScope.overwrite_default_scope('mmseg'):
        return MODELS.build(copy.deepcopy(cfg.model))


def whole_file(cfg, path, head=None, **backbone):
    """Path of a checkpoint of the whole segmentor of a config, with other settings."""
    cfg = copy.deepcopy(cfg)
    cfg.model.backbone.update(backbone)
    cfg.model.decode_head.update(head or {})
    torch.manual_seed(1)
    model = build(cfg)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    torch.save(dict(state_dict=model.state_dict(), meta={}), path)
    return str(path)


def backbone_file(whole, path, prefix='', without=('nothing',)):
    """Path of a file with the part ``backbone`` of a whole one, under another prefix, and a classifier."""
    state = torch.load(whole)['state_dict']
    state = {
        name.replace('backbone.', prefix): value
        for name, value in state.items()
        if name.startswith('backbone.') and not name.startswith(tuple(f'backbone.{part}' for part in without))
    }
    torch.save({**state, f'{prefix}head.weight': torch.zeros(9, 32)}, path)
    return str(path)


@pytest.fixture
def cfg(tiny_segmenter):
    """Config of one iteration of training with a learning rate of 0, without validation and checkpoints."""
    tiny_segmenter.train_cfg.update(max_iters=1, val_interval=9)
    tiny_segmenter.val_cfg = tiny_segmenter.val_dataloader = tiny_segmenter.val_evaluator = None
    tiny_segmenter.param_scheduler = None
    tiny_segmenter.optim_wrapper.optimizer.lr = 0.0
    tiny_segmenter.optim_wrapper.optimizer.weight_decay = 0.0
    tiny_segmenter.default_hooks.checkpoint = None
    tiny_segmenter.train_dataloader.dataset.serialize_data = False  # or it collects garbage, for a second
    tiny_segmenter.custom_hooks = [dict(type='mmtr.CheckpointCoverageHook')]
    return tiny_segmenter


@pytest.fixture
def start(make_runner, tmp_path):
    """Function from a config to the state dict that its training starts with, and its log."""

    def run(cfg):
        runner = make_runner(cfg)
        runner.train()
        return runner.model.state_dict(), max((tmp_path / 'work').glob('*/*.log')).read_text()

    return run


def pretrained(path, **more):
    return dict(type='Pretrained', checkpoint=path, **more)


def assert_started(state, file, prefix='backbone.', part='backbone.'):
    source = torch.load(file)
    source = source.get('state_dict', source)
    names = [name for name in state if name.startswith(part)]
    assert names and all(torch.equal(state[name], source[prefix + name[len(part) :]]) for name in names)


@pytest.mark.parametrize('kind', ['VisionTransformer', pytest.param('mmtr.VisionTransformer', marks=pytest.mark.slow)])
def test_a_whole_model_for_a_backbone_is_refused_and_the_prefix_named_works(cfg, start, tmp_path, kind):
    cfg.model.backbone.type = kind
    whole = whole_file(cfg, tmp_path / 'whole.pth')
    cfg.model.pretrained = whole
    words = (
        rf"model.backbone would start from random weights: '{whole}' fills 0 of 29 weights .*, and not "
        r"patch_embed.projection.weight, .*it fits with model.backbone.init_cfg=dict\(type='Pretrained', "
        rf"checkpoint='{whole}', prefix='backbone.'\)"
    )
    with pytest.raises(UserError, match=words):
        start(cfg)
    cfg.model.pretrained = None
    cfg.model.backbone.init_cfg = pretrained(whole, prefix='backbone.')
    state, log = start(cfg)
    assert_started(state, whole)
    assert f"model.backbone starts from '{whole}': 29 of 29 weights (100.0 % of their numbers)." in log
    cfg.model.backbone.init_cfg = pretrained(whole, prefix='student.backbone')
    with pytest.raises(
        UserError,
        match=r"has the prefix 'student.backbone.' of model.backbone.init_cfg; it fits with "
        r"init_cfg=dict.*, prefix='backbone.'\)",
    ):
        start(cfg)


def test_a_file_without_a_name_is_refused_and_the_setting_named(cfg, start):
    cfg.model.backbone.init_cfg = pretrained('')
    with pytest.raises(UserError, match="^model.backbone.init_cfg.checkpoint='' names no file: give the pretrained"):
        start(cfg)


@pytest.mark.parametrize('kind, words', [('mmtr.EVA02', 'it differs in '), ('mmtr.DINOv2', 'it differs in ')])
def test_backbones_that_must_be_filled_name_the_prefix_too(cfg, start, tmp_path, kind, words):
    cfg.model.backbone = dict(type=kind, patch_size=16, **SIZES)
    whole = whole_file(cfg, tmp_path / 'whole.pth')
    cfg.model.backbone.init_cfg = pretrained(whole)
    with pytest.raises(UserError, match=rf"{words}.*; it fits with init_cfg=.*prefix='backbone.'\)"):
        start(cfg)


def test_a_backbone_file_is_enough_and_says_so(cfg, start, tmp_path):
    whole = whole_file(cfg, tmp_path / 'whole.pth')
    file = backbone_file(whole, tmp_path / 'backbone.pth', without=['ln1'])
    cfg.model.pretrained = file
    state, log = start(cfg)
    assert torch.equal(state['backbone.pos_embed'], torch.load(file)['pos_embed'])
    assert '27 of 29 weights (99.' in log
    cfg.model.pretrained = backbone_file(whole, tmp_path / 'other.pth', without=['layers.1.attn'])
    with pytest.raises(
        UserError,
        match=r'fills 25 of 29 .*not layers.1.attn.attn.in_proj_weight, layers.1.attn.attn.'
        'out_proj.weight; --allow-partial trains it nevertheless',
    ):
        start(cfg)
    cfg.custom_hooks[0].allow_partial = True
    assert 'WARNING - model.backbone would start from random weights' in start(cfg)[1]


def test_position_tables_of_another_size_are_resized_by_the_host(cfg, start, tmp_path):
    whole = whole_file(cfg, tmp_path / 'whole.pth', img_size=(96, 96))
    cfg.model.pretrained = backbone_file(whole, tmp_path / 'backbone.pth')
    assert '29 of 29 weights' in start(cfg)[1]
    cfg.model.pretrained = None
    cfg.model.backbone.init_cfg = pretrained(whole, prefix='backbone')
    with pytest.raises(UserError, match="type='mmtr.VisionTransformer', resize that table in a part of a file"):
        start(cfg)
    cfg.model.backbone.type = 'mmtr.VisionTransformer'
    state = start(cfg)[0]
    assert torch.equal(state['backbone.cls_token'], torch.load(whole)['state_dict']['backbone.cls_token'])


@pytest.mark.parametrize('part', ['neck', 'decode_head'])
def test_any_part_with_a_file_of_its_own_is_looked_at(cfg, start, tmp_path, part):
    cfg.model.neck = dict(type='FPN', in_channels=[32], out_channels=32, num_outs=1)
    cfg.model.decode_head = dict(type='FCNHead', in_channels=32, in_index=0, channels=8, num_classes=4, num_convs=1)
    whole = whole_file(cfg, tmp_path / 'whole.pth')
    cfg.model[part].init_cfg = pretrained(whole)
    with pytest.raises(
        UserError,
        match=rf'model.{part} would start from .* fills 0 of .*it fits with model.{part}.'
        rf"init_cfg=.*prefix='{part}.'\)",
    ):
        start(cfg)
    cfg.model[part].init_cfg = pretrained(whole, prefix=part)
    assert_started(start(cfg)[0], whole, f'{part}.', f'{part}.')


def test_a_class_that_does_not_look_at_its_init_cfg_is_named(cfg, start, tmp_path):
    cfg.model.decode_head.init_cfg = pretrained(whole_file(cfg, tmp_path / 'whole.pth'), prefix='decode_head')
    with pytest.raises(UserError, match="nothing was read of '.*whole.pth', for a SegmenterMaskTransformerHead does "):
        start(cfg)


def test_load_from_says_how_much_it_fills(cfg, start, tmp_path):
    cfg.load_from = whole_file(cfg, tmp_path / 'whole.pth')
    state, log = start(cfg)
    assert_started(state, cfg.load_from)
    assert_started(state, cfg.load_from, 'decode_head.', 'decode_head.')
    assert f"INFO - load_from='{cfg.load_from}' fills 50 of 50 weights (100.0 % of their numbers).\n" in log
    cfg.load_from = whole_file(cfg, tmp_path / 'classes.pth', head=dict(num_classes=7))
    state, log = start(cfg)
    assert_started(state, cfg.load_from)
    assert 'WARNING - load_from=' in log and 'not decode_head.cls_emb: (1, 7, 32) in the file, (1, 4, 32) in' in log


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(embed_dims=48), r'not backbone.cls_token: \(1, 1, 48\) in the file, \(1, 1, 32\) in the model'),
        (dict(num_layers=1), r'fills 38 of 50 .*not backbone.layers.1.attn.attn.in_proj_weight'),
        (
            dict(img_size=(96, 96)),
            r'backbone.pos_embed: \(1, 37, 32\) in the file.*; model.backbone.init_cfg=dict\('
            r"type='Pretrained', checkpoint='[^']*', prefix='backbone.'\) starts the backbone from it",
        ),
    ],
    ids=str,
)
def test_load_from_stops_where_layers_of_the_backbone_would_be_random(cfg, start, tmp_path, settings, words):
    head = dict(in_channels=48) if 'embed_dims' in settings else {}
    cfg.load_from = whole_file(cfg, tmp_path / 'whole.pth', head, **settings)
    with pytest.raises(UserError, match=words):
        start(cfg)
    cfg.custom_hooks[0].allow_partial = True
    assert 'would leave random weights in the model' in start(cfg)[1]


def test_load_from_of_a_backbone_or_another_model(cfg, start, tmp_path):
    whole = whole_file(cfg, tmp_path / 'whole.pth')
    cfg.load_from = backbone_file(whole, tmp_path / 'backbone.pth')
    with pytest.raises(
        UserError,
        match=rf"fills 0 of .*; model.backbone.init_cfg=dict\(type='Pretrained', checkpoint="
        rf"'{cfg.load_from}'\) starts the backbone from it",
    ):
        start(cfg)
    torch.save(dict(state_dict={'encoder.weight': torch.zeros(3)}), tmp_path / 'other.pth')
    cfg.load_from = str(tmp_path / 'other.pth')
    with pytest.raises(UserError, match='would leave random weights in the model: it fills 0 of 50'):
        start(cfg)


def test_what_is_resumed_must_be_whole(cfg, start, tmp_path):
    cfg.load_from, cfg.resume = whole_file(cfg, tmp_path / 'whole.pth', head=dict(num_classes=7)), True
    with pytest.raises(UserError, match='does not cover the model: 3 of another shape.*--allow-partial resumes from'):
        start(cfg)


def test_tools_train_refuses_unless_allowed(cfg, tool, tmp_path):
    whole = whole_file(cfg, tmp_path / 'whole.pth')
    cfg.custom_hooks = []
    cfg.dump(str(tmp_path / 'config.py'))
    for option in (f'model.pretrained={whole}', f'load_from={backbone_file(whole, tmp_path / "backbone.pth")}'):
        status, said = tool('train', tmp_path / 'config.py', '--cfg-options', option)
        assert status == 2 and said.count('\n') == 1 and 'random weights' in said and '--allow-partial' in said
        assert not (tmp_path / 'work').exists()
    assert tool('train', tmp_path / 'config.py', '--allow-partial', '--cfg-options', option) == (0, '')


@pytest.mark.parametrize('prefix', [None, 'backbone'])
def test_a_teacher_is_looked_at(cfg, start, tmp_path, prefix):
    cfg.model.backbone.type = 'mmtr.VisionTransformer'
    whole = whole_file(cfg, tmp_path / 'whole.pth')
    teacher = {**cfg.model.backbone, 'init_cfg': pretrained(whole, **(dict(prefix=prefix) if prefix else {}))}
    cfg.model.update(type='mmtr.DistillationEncoderDecoder', distillation=dict(channels=8, teacher=teacher))
    if prefix:
        start(cfg)
        return
    with pytest.raises(
        UserError,
        match=r'model.distillation.teacher would start from random weights: .* it fits with '
        r"model.distillation.teacher.init_cfg=.*prefix='backbone.'\)\.",
    ):
        start(cfg)
