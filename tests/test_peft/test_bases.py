"""The frozen weights that a file of what was tuned belongs to: what fits, what does not, and a file that needs none."""

import copy

import pytest
import torch
from mmengine.config import Config

from mmtr import UserError
from mmtr.inference.model import build_model, load_weights
from mmtr.weights.files import read_checkpoint
from mmtr.weights.tuned import META

from .tuned_runs import DAR, base_file, changed, deploy, frozen


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
