import importlib.util
import json
import statistics
import sys
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmtr.inference.model import build_model, without_pretrained

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'benchmark.py'
CONFIG = """
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    pretrained='https://nowhere.invalid/weights.pth',
    backbone=dict(type='{backbone}', img_size=(64, 64), patch_size=16, embed_dims=32, num_layers=2,
                  num_heads=2, final_norm=True),
    decode_head=dict(type='SegmenterMaskTransformerHead', in_channels=32, channels=32, num_classes=5,
                     num_layers=1, num_heads=2, embed_dims=32))
"""
REDUCED = '@model.backbone.token_reduction.type=TokenAdapter@model.backbone.token_reduction.layers=(1,2)'


@pytest.fixture(scope='module')
def benchmark():
    spec = importlib.util.spec_from_file_location('benchmark', TOOL)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(benchmark, monkeypatch):
    def run(*args):
        monkeypatch.setattr(sys, 'argv', ['tools/benchmark.py', *map(str, args)])
        return benchmark.main()

    return run


@pytest.fixture
def results(run, tmp_path):
    """Function that measures once on a CPU, and gives what was written as JSON."""

    def results(*args, shape=(160, 160)):
        out = tmp_path / 'out.json'
        run(*args, '--shape', *shape, '--repeats', 1, '--device', 'cpu', '--json', out)
        return json.loads(out.read_text())['results']

    return results


@pytest.fixture
def configs(tmp_path):
    paths = {}
    for name, backbone in dict(stock='VisionTransformer', ours='mmtr.VisionTransformer').items():
        paths[name] = tmp_path / f'{name}.py'
        paths[name].write_text(CONFIG.format(backbone=backbone))
    return paths


@pytest.mark.slow
def test_a_reduction_is_measured_beside_the_config_as_it_is(results, configs):
    reduction = ('--token-reduction', 'TokenAdapter', 'ratio=0.5', 'layers=(1,2)')
    found = results(configs['stock'], configs['ours'], *reduction, shape=(64, 64))
    name = '@TokenAdapter,ratio=0.5,layers=(1, 2)'
    assert {r['config']: r['tokens_per_layer'] for r in found} == {
        'stock': None,
        f'stock{name}': [16, 4],
        'ours': [16, 16],
        f'ours{name}': [16, 4],
    }


def test_stock_and_ours_side_by_side(run, configs, tmp_path, capsys):
    out = tmp_path / 'out.json'
    run(
        configs['stock'],
        configs['ours'],
        '--shape',
        64,
        96,
        '--repeats',
        3,
        '--batch-size',
        2,
        '--device',
        'cpu',
        '--part',
        'model',
        'backbone',
        '--json',
        out,
    )
    report = json.loads(out.read_text())
    assert report['command'].startswith('tools/benchmark.py ')
    assert report['machine']['torch'] == torch.__version__ and report['machine']['dtype'] == 'float32'
    assert report['settings']['batch_size'] == 2
    assert report['configs'] == [str(configs['stock']), str(configs['ours'])]
    assert [(r['part'], r['config']) for r in report['results']] == [
        ('model', 'stock'),
        ('model', 'ours'),
        ('backbone', 'stock'),
        ('backbone', 'ours'),
    ]
    for stock, ours in (report['results'][:2], report['results'][2:]):
        for r in (stock, ours):
            assert len(r['seconds']) == 3
            assert r['ms_per_image'] == pytest.approx(1e3 * statistics.median(r['seconds']) / 2)
            assert r['ms_per_image_quartiles'][0] <= r['ms_per_image'] <= r['ms_per_image_quartiles'][1]
            assert r['images_per_second'] == pytest.approx(1e3 / r['ms_per_image'])
            assert r['speed_up'] == pytest.approx(stock['ms_per_image'] / r['ms_per_image'])
            assert r['memory_ratio'] == pytest.approx(r['peak_memory_bytes'] / stock['peak_memory_bytes'])
            assert r['own_weights'] == [] and r['uncounted'] == {} and r['reducer_share'] is None
        assert stock['gflops'] == ours['gflops'] and ours['gflops_ratio'] == 1
        assert stock['parameters'] == ours['parameters']
        assert ours['tokens_per_layer'] == [24, 24] and stock['tokens_per_layer'] is None
    printed = capsys.readouterr()
    assert 'tokens per layer 24 x2' in printed.out
    lines = [line for line in printed.out.splitlines() if line.startswith(('config', 'stock ', 'ours '))]
    assert len(lines) == 6
    assert len({len(line) for line in lines[:3]}) == 1, 'columns are aligned'
    assert 'Timing' in printed.err


@pytest.mark.slow
def test_override_of_one_config_reduces_it(results, configs, capsys):
    plain, reduced = results(configs['ours'], f'{configs["ours"]}{REDUCED}')
    assert reduced['config'] == 'ours@type=TokenAdapter@layers=(1,2)'
    assert plain['tokens_per_layer'] == [100, 100] and reduced['tokens_per_layer'] == [100, 49]
    assert reduced['gflops'] < plain['gflops'] and reduced['own_weights'] == []
    assert plain['reducer_share'] is None and 0 < reduced['reducer_share'] < 1
    assert 'tokens per layer 100 x1, 49 x1' in capsys.readouterr().out


@pytest.mark.slow
def test_images_have_as_many_channels_as_the_model_takes(results, configs, capsys):
    ours, gflops = configs['ours'], {}
    for channels in (3, 6):
        (found,) = results(f'{ours}@model.backbone.in_channels={channels}', shape=(64, 64))
        gflops[channels] = found['gflops']
    width = Config.fromfile(ours).model.backbone.embed_dims
    assert gflops[6] - gflops[3] == pytest.approx(16 * width * 16 * 16 * 3 / 1e9)  # 16 patches of 16x16 pixels
    with pytest.raises(SystemExit):
        results(ours, f'{ours}@model.backbone.in_channels=4', shape=(64, 64))
    assert 'The models take images of 3 and 4 channels' in capsys.readouterr().err


@pytest.mark.slow
def test_untrained_dar_is_counted_at_its_target(results, configs):
    reduction = 'model.backbone.token_reduction'
    targets = [f'{configs["ours"]}@{reduction}.type=DAR@{reduction}.target={target}' for target in (0.5, 0.25)]
    plain, *reduced = results(configs['ours'], *targets, '--part', 'backbone', shape=(128, 128))
    for result, skipped in zip(reduced, (32, 48)):
        ffn, selector = skipped * 2 * 32 * 128, 64 * 9 * 32
        assert plain['gflops'] - result['gflops'] == pytest.approx(2 * (ffn - selector) / 1e9)
        assert result['uncounted'] == {} and result['tokens_per_layer'] == [64, 64]


@pytest.mark.slow
def test_hook_of_an_unmodified_config_is_applied(results, configs, tmp_path):
    hooked = tmp_path / 'hooked.py'
    hooked.write_text(
        "_base_ = './stock.py'\ncustom_hooks = [dict(type='mmtr.TokenReductionHook', "
        "token_reduction=dict(type='TokenAdapter', layers=(1, 2)))]\n"
    )
    stock, reduced = results(configs['stock'], hooked)
    assert reduced['tokens_per_layer'] == [100, 49]
    assert reduced['gflops'] < stock['gflops']


def test_all_models_get_the_weights_of_the_checkpoint(benchmark, configs, tmp_path, monkeypatch):
    cfgs = [benchmark.read_config(str(path), {}) for path in configs.values()]
    trained = build_model(cfgs[0], 'cpu')
    torch.save(dict(state_dict=trained.state_dict()), tmp_path / 'trained.pth')
    monkeypatch.setattr(
        sys,
        'argv',
        ['x', 'a', 'b', '--shape', '64', '64', '--device', 'cpu', '--checkpoint', str(tmp_path / 'trained.pth')],
    )
    models, own = benchmark.build_all(benchmark.parse_args(), ['a', 'b'], cfgs)
    image = torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        expected = trained(image)
        for model in models:
            torch.testing.assert_close(model(image), expected, rtol=1e-4, atol=1e-5)
    assert own == [[], []]
    pointers = [[p.data_ptr() for p in model.parameters()] for model in models]
    assert pointers[0] == pointers[1], 'one copy of the weights'


@pytest.mark.slow
def test_tensors_that_do_not_fit_are_named(results, configs, capsys):
    results(configs['ours'], f'{configs["ours"]}@model.decode_head.num_classes=7', shape=(64, 64))
    assert (
        'ours@num_classes=7: 3 tensors with random weights of its own, such as decode_head.cls_emb'
        in capsys.readouterr().out
    )


def test_names_stay_apart(benchmark):
    assert benchmark.names_of(['a/x.py', 'b/y.py']) == ['x', 'y']
    assert benchmark.names_of(['a/x.py', 'b/x.py']) == ['a/x.py', 'b/x.py']
    assert benchmark.names_of(['a/x.py', 'a/x.py']) == ['a/x.py #1', 'a/x.py #2']
    assert benchmark.names_of(['x.py', 'x.py@model.a.ratio=0.3']) == ['x', 'x@ratio=0.3']


def test_packaged_config_is_read_by_name(benchmark):
    cfg = benchmark.read_config('mmseg::segmenter/segmenter_vit-t_mask_8xb1-160k_ade20k-512x512.py', {})
    assert cfg.model.backbone.embed_dims == 192
    assert 'pretrained' not in without_pretrained(cfg.model)


@pytest.mark.parametrize(
    'args, sentence',
    [
        (['nowhere.py'], "Config 'nowhere.py' is not there"),
        (['mmnothing::a/b.py'], "Config 'mmnothing::a/b.py' is of 'mmnothing', which is not installed"),
        (['mmseg::segmenter/nothing.py'], "Config 'mmseg::segmenter/nothing.py' is not there"),
        (['{ours}@model.backbone'], "not 'model.backbone'"),
        (['{ours}', '--cfg-options', 'model.backbone.embed_dims.wide=1'], 'do not fit config'),
        (['{ours}@model.backbone.embed_dims.wide=1'], 'do not fit config'),
        (['{empty}'], 'has no model with a backbone'),
        (['{broken}'], 'cannot be read'),
        (['{ours}', '--shape', '8', '64'], '--shape 8 64 is smaller than one patch of 16x16 pixels'),
        (['{ours}', '--device', 'cuda:99'], '--device cuda:99 cannot be used: this machine has cpu'),
        (['{ours}', '--device', 'abacus'], '--device abacus cannot be used: this machine has cpu'),
        (['{ours}', '--checkpoint', 'nowhere.pth'], 'nowhere.pth'),
        (['{ours}', '--checkpoint', '{other}'], 'are missing or of another shape, such as backbone.cls_token'),
        (
            ['{ours}@model.backbone.token_reducton.type=ToMe'],
            "VisionTransformer has no setting 'token_reducton', the nearest is 'token_reduction': it has",
        ),
        (['{ours}', '--json', 'nowhere/out.json'], '--json nowhere/out.json cannot be written'),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(run, configs, tmp_path, capsys, args, sentence):
    (tmp_path / 'empty.py').write_text('a = 1\n')
    (tmp_path / 'broken.py').write_text('model = dict(\n')
    torch.save(dict(state_dict={'backbone.cls_token': torch.zeros(1, 1, 8)}), tmp_path / 'other.pth')
    places = dict(configs, **{path.stem: path for path in tmp_path.iterdir()})
    args = [arg.format(**places) for arg in args]
    defaults = ['--shape', '64', '64', '--device', 'cpu']
    with pytest.raises(SystemExit) as stopped:
        run(*args[:1], *defaults, *args[1:])
    error = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2
    assert error[-1].startswith('Error: ') and sentence in error[-1]


@pytest.mark.parametrize('option', ['--repeats', '--batch-size', '--threads'])
def test_counts_must_be_positive(run, configs, capsys, option):
    with pytest.raises(SystemExit) as stopped:
        run(configs['ours'], '--shape', 64, 64, option, 0)
    assert stopped.value.code == 2
    assert "whole number above 0 value: '0'" in capsys.readouterr().err


@pytest.mark.slow
def test_each_model_has_a_compiled_twin(results, configs, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, 'compile', lambda module, dynamic: compiled.append(module) or module)
    found = results(configs['stock'], f'{configs["ours"]}{REDUCED}', '--compile')
    names = ['stock', 'ours@type=TokenAdapter@layers=(1,2)']
    assert [r['config'] for r in found] == [each for name in names for each in (name, f'{name} compiled')]
    assert [type(module.backbone).__module__.split('.')[0] for module in compiled] == ['mmseg', 'mmtr']
    assert found[2]['gflops'] == found[3]['gflops'] < found[0]['gflops']
    assert found[2]['reducer_share'] > 0 and found[3]['reducer_share'] is None


def test_compiling_needs_a_compiler(run, configs, monkeypatch, capsys):
    monkeypatch.setattr('shutil.which', lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        run(configs['ours'], '--shape', 64, 64, '--compile')
    assert stopped.value.code == 2 and '--compile needs a C++ compiler' in capsys.readouterr().err


@pytest.mark.parametrize(
    'name, args, sentence',
    [
        ('torch._dynamo.is_dynamo_supported', ['--compile'], '--compile: torch'),
        ('torch.autocast', ['--dtype', 'float16'], '--dtype float16, --device cpu: not on this processor'),
    ],
)
def test_what_this_torch_cannot_do_is_said(run, configs, monkeypatch, capsys, name, args, sentence):
    def refuse(*args):
        if args:
            raise RuntimeError('not on this processor')

    monkeypatch.setattr('shutil.which', str)
    monkeypatch.setattr(name, refuse)
    with pytest.raises(SystemExit) as stopped:
        run(configs['ours'], '--shape', 64, 64, '--device', 'cpu', *args)
    assert stopped.value.code == 2 and sentence in capsys.readouterr().err
