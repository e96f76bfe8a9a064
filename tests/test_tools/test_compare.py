import csv
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from PIL import Image

import mmtr.analysis.compare
from mmtr.inference.model import build_model, load_weights
from tests.conftest import TOOLS

REDUCTIONS = """
reductions = dict(
    nothing=dict(type='TokenAdapter', ratio=0.),
    half=dict(type='TokenAdapter', ratio=0.5, layers=(0, 2), merge='keep'))
"""


@pytest.fixture
def files(tiny_segmenter, tmp_path):
    """Config, checkpoint and reductions of a tiny mmtr Segmenter."""
    tiny_segmenter.model.backbone.type = 'mmtr.VisionTransformer'
    tiny_segmenter.dump(str(tmp_path / 'tiny.py'))
    torch.manual_seed(0)
    model = build_model(tiny_segmenter)
    for parameter in model.parameters():
        if parameter.dim() > 1:  # norms that shrink everything would leave one class everywhere
            torch.nn.init.normal_(parameter, std=0.3)
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'tiny.pth')
    (tmp_path / 'reductions.py').write_text(REDUCTIONS)
    return [tmp_path / name for name in ('tiny.py', 'tiny.pth', 'reductions.py')]


def compare(monkeypatch, *args):
    """Exit status of tools/compare.py."""
    monkeypatch.setattr(sys, 'argv', ['compare.py', *map(str, args)])
    try:
        runpy.run_path(str(TOOLS / 'compare.py'), run_name='__main__')
    except SystemExit as stop:
        return stop.code
    return 0


def results_of(out):
    return json.loads(out.with_suffix('.json').read_text())['results']


def stop_after(monkeypatch, batches):
    """Ctrl-C after so many batches, None: never; what was shown is returned."""

    class Bar:
        def __init__(self, total, done=0):
            self.total, self.done, self.left = total, done, batches

        def __enter__(self):
            shown.append((self.done, self.total))
            return self

        def __exit__(self, *error):
            pass

        def update(self):
            if self.left is not None:
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt

    shown = []
    monkeypatch.setattr(mmtr.analysis.compare, 'progress_bar', Bar)
    return shown


@pytest.mark.slow
def test_metrics_are_those_of_the_test_tool(files, tmp_path, monkeypatch, capsys):
    assert compare(monkeypatch, *files, '--out', tmp_path / 'out') == 0
    assert list(results_of(tmp_path / 'out')) == ['plain', 'nothing', 'half']
    page, printed = (tmp_path / 'out.md').read_text(), capsys.readouterr().out
    assert f'compare.py {files[0]} ' in page and '*6 images, ' in page and ' threads, float32, torch ' in page
    assert '| half |' in page and '\n6 images, ' in printed
    results = results_of(tmp_path / 'out')
    head, *rows = printed.splitlines()[:4]
    assert [row.lstrip(' *').split()[0] for row in rows] == sorted(
        results, key=lambda name: (name != 'plain', -results[name]['total_ms'])
    )
    assert len({len(row) for row in (head, *rows)}) == 1
    monkeypatch.setattr(sys, 'argv', ['test.py', str(files[0]), str(files[1]), '--work-dir', str(tmp_path / 'work')])
    runpy.run_path(str(TOOLS / 'test.py'), run_name='__main__')
    tested = json.loads(next((tmp_path / 'work').glob('*/*.json')).read_text())
    assert results['plain']['metrics']['mIoU'] == pytest.approx(tested['mIoU'])
    for key in ('metrics', 'class_iou'):
        assert results['nothing'][key] == results['plain'][key] != results['half'][key]
    assert results['half']['gflops'] < results['plain']['gflops']
    assert results['half']['tokens_per_layer'] == '4 x2' and results['plain']['tokens_per_layer'] == '16 x2'


@pytest.mark.parametrize('num_images, names', [(1, '0'), (3, '025'), (4, '0235'), (9, '012345')])
def test_images_are_chosen_at_even_distances(tiny_segmenter, num_images, names):
    init_default_scope('mmseg')
    loader = mmtr.analysis.compare.test_loader(tiny_segmenter, num_images)
    assert [Path(batch['data_samples'][0].img_path).stem for batch in loader] == list(names)
    assert loader.dataset.metainfo['classes'] == ('sky', 'grass', 'sand', 'lake')


@pytest.mark.slow
def test_a_run_on_some_images_says_how_many_and_goes_on_with_no_other_number(files, tmp_path, monkeypatch, capsys):
    assert compare(monkeypatch, *files, '--num-images', 2, '--out', tmp_path / 'two') == 0
    assert json.loads((tmp_path / 'two.json').read_text())['images'] == 2
    stop_after(monkeypatch, 1)
    compare(monkeypatch, *files, '--num-images', 2, '--out', tmp_path / 'out')
    assert compare(monkeypatch, *files, '--num-images', 3, '--out', tmp_path / 'out') == 2
    assert 'with another number of images: remove it' in capsys.readouterr().err


def test_iou_of_each_class_is_counted_pixel_by_pixel(files, tiny_segmenter, tmp_path, monkeypatch):
    compare(monkeypatch, *files, '--out', tmp_path / 'out')
    model = build_model(tiny_segmenter)
    load_weights(model, files[1])
    both, either = np.zeros(4), np.zeros(4)
    with torch.no_grad():
        for batch in Runner.build_dataloader(tiny_segmenter.test_dataloader):
            predicted = model.test_step(batch)[0].pred_sem_seg.data[0].numpy()
            labels = batch['data_samples'][0].gt_sem_seg.data[0].numpy()
            for k in range(4):
                both[k] += ((predicted == k) & (labels == k)).sum()
                either[k] += ((predicted == k) | (labels == k)).sum()
    plain = results_of(tmp_path / 'out')['plain']
    assert plain['class_iou'] == pytest.approx(dict(zip(('sky', 'grass', 'sand', 'lake'), 100 * both / either)))
    rows = list(csv.DictReader(open(tmp_path / 'out.csv')))
    assert [row['reduction'] for row in rows] == ['plain', 'nothing', 'half']
    assert float(rows[0]['IoU sand']) == pytest.approx(100 * both[2] / either[2])


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_result(files, tmp_path, monkeypatch, capsys):
    stop_after(monkeypatch, None)
    compare(monkeypatch, *files, '--out', tmp_path / 'whole')
    stop_after(monkeypatch, 4)
    assert compare(monkeypatch, *files, '--out', tmp_path / 'parts') == 130
    assert 'Interrupted after 4 batches; the same command goes on' in capsys.readouterr().err
    assert not (tmp_path / 'parts.json').exists()
    shown = stop_after(monkeypatch, None)
    assert compare(monkeypatch, *files, '--out', tmp_path / 'parts') == 0
    assert shown == [(4, 6)] and 'Going on after 4 batches' in capsys.readouterr().err
    whole, parts = (results_of(tmp_path / name) for name in ('whole', 'parts'))
    for name in whole:
        for key in ('metrics', 'class_iou', 'gflops', 'tokens_per_layer'):
            assert parts[name][key] == whole[name][key]
    assert json.loads((tmp_path / 'parts.json').read_text())['images'] == 6
    assert not (tmp_path / 'parts.partial').exists()


@pytest.mark.slow
@pytest.mark.parametrize('other', ['reductions', 'config', 'checkpoint'])
def test_a_run_does_not_go_on_from_another_one(files, tmp_path, monkeypatch, capsys, other):
    stop_after(monkeypatch, 2)
    compare(monkeypatch, *files, '--out', tmp_path / 'out')
    if other == 'reductions':
        files[2].write_text(REDUCTIONS.replace('0.5', '0.4'))
    elif other == 'config':
        files[0].write_text(files[0].read_text().replace("type='IoUMetric'", "type='IoUMetric', beta=2"))
    else:
        weights = torch.load(files[1])
        weights['state_dict']['backbone.cls_token'] += 1
        torch.save(weights, files[1])
    assert compare(monkeypatch, *files, '--out', tmp_path / 'out') == 2
    assert f'with another {other}: remove it to start anew' in capsys.readouterr().err


def test_a_journal_of_something_else_is_refused(files, tmp_path, monkeypatch, capsys):
    (tmp_path / 'out.partial').write_text('my notes, which are no database at all' * 40)
    assert compare(monkeypatch, *files, '--out', tmp_path / 'out') == 2
    assert 'is no journal' in capsys.readouterr().err
    assert (tmp_path / 'out.partial').read_text().startswith('my notes')


@pytest.mark.slow
def test_all_leaves_out_what_the_backbone_cannot_take_and_draws_a_figure(files, tmp_path, monkeypatch, capsys):
    text = files[0].read_text()
    assert 'drop_path_rate=0.2,' in text
    files[0].write_text(text.replace('drop_path_rate=0.2,', 'drop_path_rate=0.2, with_cls_token=False,'))
    assert compare(monkeypatch, *files[:2], '--all', '--out', tmp_path / 'out') == 0
    assert "Left out 'EViT 0.9': token_reduction.type='EViT' reads the class token" in capsys.readouterr().err
    methods = {
        result['token_reduction']['type'] for name, result in results_of(tmp_path / 'out').items() if name != 'plain'
    }
    # ALGM's two layers must differ, and its defaults are one in a backbone of two.
    assert {'TokenAdapter', 'ToMe', 'Expediting', 'Random'} <= methods and not methods & {'EViT', 'ALGM'}
    assert np.asarray(Image.open(tmp_path / 'out.png').convert('RGB')).std() > 10
    assert (tmp_path / 'out.pdf').read_bytes().startswith(b'%PDF')
    files[2].write_text("reductions = dict(keep=dict(type='EViT'))")
    assert compare(monkeypatch, *files) == 2
    assert "Error: 'keep': token_reduction.type='EViT' reads the class token" in capsys.readouterr().err


def test_reductions_can_be_yaml(files, tmp_path, monkeypatch, capsys):
    (tmp_path / 'reductions.yaml').write_text('reductions: {few: {type: Random, every: 4}}')
    assert compare(monkeypatch, *files[:2], tmp_path / 'reductions.yaml') == 0
    assert '  few ' in capsys.readouterr().out


@pytest.mark.parametrize(
    'args, sentence',
    [
        (['{2}', '--all'], 'Give either a file with reductions or --all'),
        ([], 'Give either a file with reductions or --all'),
        (['{0}'], 'must be a Python or YAML file with reductions = dict'),
        (['{2}', '--cfg-options', 'oops'], "not 'oops'"),
        (['{2}', '--cfg-options', 'model.backbone.embed_dims.wide=1'], 'do not fit config'),
        (['{2}', '--cfg-options', 'test_evaluator=None'], 'has no test_evaluator'),
        (['{2}', '--device', 'abacus'], '--device abacus cannot be used'),
    ],
)
def test_bad_input_is_one_sentence(files, monkeypatch, capsys, args, sentence):
    assert compare(monkeypatch, *files[:2], *(arg.format(*files) for arg in args)) == 2
    assert sentence in capsys.readouterr().err
