"""The tools with a classifier, from training to a file for onnxruntime."""

import json
import re
import runpy
import sys

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import load

import mmtr.analysis.judging
from mmtr.analysis.judging import Judge
from mmtr.cli.launch import runner
from mmtr.errors import UserError
from mmtr.inference.model import build_model, init_model
from tests.conftest import RUNS, TOOLS
from tests.tiny_classifier import CLASSES, classifier_cfg, draw_classes

CROPR = dict(type='Cropr', r=6, layers=[0], task='classification', num_classes=len(CLASSES))
ADAPTER = dict(type='TokenAdapter', ratio=0.25, layers=(1, 3))


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('classifier')
    draw_classes(folder / 'data')
    for name, reduction in dict(plain=None, reduced=ADAPTER, cropr=CROPR).items():
        cfg = classifier_cfg(folder / 'data', folder / f'work_{name}', token_reduction=reduction)
        if name == 'cropr':
            cfg.train_cfg.max_iters = 2
        cfg.dump(str(folder / f'{name}.py'))
    torch.manual_seed(0)
    model = build_model(Config.fromfile(folder / 'plain.py'))
    for parameter in model.parameters():
        if parameter.dim() > 1:  # so that classes differ from image to image
            torch.nn.init.normal_(parameter, std=0.5)
    torch.save(dict(state_dict=model.state_dict()), folder / 'plain.pth')
    return folder


@pytest.fixture
def printing(monkeypatch, capsys):
    """Function that runs tools/NAME.py; gives what it printed."""

    def run(name, *args):
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, args)])
        capsys.readouterr()
        status = 0
        try:
            runpy.run_path(str(TOOLS / f'{name}.py'), run_name='__main__')
        except SystemExit as stop:
            status = stop.code
        out, error = capsys.readouterr()
        assert not status, error
        return out + error

    return run


def expected(folder, split='val', config='plain'):
    """By hand: the scores of each image of a split, in sorted order, and its label."""
    model = init_model(str(folder / f'{config}.py'), str(folder / 'plain.pth'), device='cpu')
    scores, labels = [], []
    for path in sorted((folder / 'data' / split).glob('*/*.png')):
        rgb = cv2.imread(str(path))[..., ::-1].astype(np.float32)
        inputs = torch.from_numpy((rgb - 120) / 60).permute(2, 0, 1)[None]
        with torch.no_grad():
            scores.append(model.head(model.backbone(inputs)).softmax(1)[0].numpy())
        labels.append(CLASSES.index(path.parent.name))
    return np.stack(scores), np.array(labels)


def test_a_run_that_resumes_mixes_images_as_the_uninterrupted_one(tool, folder, tmp_path):
    def weights(path):
        return torch.load(path, map_location='cpu', weights_only=False)['state_dict']

    assert tool('train', folder / 'plain.py', '--work-dir', tmp_path / 'whole')[0] == 0
    last = ['--work-dir', tmp_path / 'parts', '--resume', tmp_path / 'whole/iter_2.pth']
    assert tool('train', folder / 'plain.py', *last)[0] == 0
    whole, parts = (weights(tmp_path / name / 'iter_4.pth') for name in ('whole', 'parts'))
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], rtol=0, atol=0)


def test_test_measures_writes_and_paints(tool, folder, tmp_path):
    options = ['--work-dir', tmp_path / 'work', '--out', tmp_path / 'found.pkl', '--show-dir', tmp_path / 'drawn']
    status, error = tool('test', folder / 'plain.py', folder / 'plain.pth', *options)
    assert status == 0, error
    scores, labels = expected(folder)
    (file,) = (tmp_path / 'work').glob('*/*.json')
    assert json.loads(file.read_text())['accuracy/top1'] == pytest.approx(100 * (scores.argmax(1) == labels).mean())
    found = load(tmp_path / 'found.pkl')
    np.testing.assert_allclose(np.stack([each['pred_score'].numpy() for each in found]), scores, atol=1e-5)
    assert len(list((tmp_path / 'drawn').glob('*.png'))) == len(labels)


def test_predict_writes_the_class_and_compares(printing, folder, tmp_path):
    args = [folder / 'reduced.py', folder / 'plain.pth', folder / 'data/val/red', '--out', tmp_path]
    printed = printing('predict', *args)
    plain, reduced = (expected(folder, config=name)[0][-3:] for name in ('plain', 'reduced'))
    for i, scores in enumerate(reduced):
        assert f'red{i}.png: {CLASSES[scores.argmax()]} {scores.max():.2f}' in printed
        assert (np.abs(cv2.imread(str(tmp_path / f'red{i}.png')).astype(int)) > 0).any()
    assert 'colours' not in printed
    printed = printing('predict', *args, '--compare', '--repeats', 1)
    differ = (plain.argmax(1) != reduced.argmax(1)).mean()
    assert f'{differ:.2%}' in printed and 'images that differ' in printed
    for i, pair in enumerate(zip(plain, reduced)):
        one, other = (CLASSES[scores.argmax()] for scores in pair)
        says = 'the same class' if one == other else 'another class'
        assert re.search(rf'red{i}\.png: plain \S+ ms, {one} .*, {other} \S+, {says}', printed)


def test_compare_ranks_by_accuracy(printing, folder, tmp_path):
    (tmp_path / 'reductions.py').write_text(f'reductions = dict(adapter={ADAPTER})')
    out = tmp_path / 'out'
    printed = printing('compare', folder / 'plain.py', folder / 'plain.pth', tmp_path / 'reductions.py', '--out', out)
    assert 'no other setting is better both in accuracy/top1 and in speed' in printed
    results = json.loads((tmp_path / 'out.json').read_text())['results']
    for name, config in dict(plain='plain', adapter='reduced').items():
        scores, labels = expected(folder, config=config)
        found = results[name]['metrics']
        assert found['accuracy/top1'] == pytest.approx(100 * (scores.argmax(1) == labels).mean())
        top2 = (scores.argsort(1)[:, -2:] == labels[:, None]).any(1).mean()
        assert found['accuracy/top2'] == pytest.approx(100 * top2)
    assert (tmp_path / 'out.png').exists()


class Counting(Judge):
    """A judge whose clock is of the tokens, 1 ms each."""

    def __init__(self, cfg, model, *args):
        self.seconds = 0.0
        for layer in model.backbone.layers:
            layer.register_forward_hook(lambda module, inputs, out: self.count(out.shape[1]))
        super().__init__(cfg, model, *args, clock=lambda: self.seconds)

    def count(self, tokens):
        self.seconds += 1e-3 * tokens


@pytest.mark.parametrize('labels', [True, False], ids=['labels', 'agreement'])
def test_tune_needs_no_metric(printing, folder, tmp_path, monkeypatch, labels):
    monkeypatch.setattr(mmtr.analysis.judging, 'Judge', Counting)
    out = tmp_path / 'tuned.py'
    options = ['--target-speedup', 1.05, '--method', 'Random', '--num-images', 5, '--trials', 4, '--out', out]
    options += [] if labels else ['--images', folder / 'data/val']
    printed = printing('tune_reduction', folder / 'plain.py', folder / 'plain.pth', *options)
    what = 'accuracy/top1' if labels else 'accuracy/top1 against the plain predictions'
    said = re.search(rf'# Measured on 5 images .*, {what} (\S+) \(plain (\S+)\)', out.read_text())
    assert float(said[1]) % 20 == float(said[2]) % 20 == 0 and (labels or float(said[2]) == 100)
    assert f'Wrote {out}' in printed
    assert Config.fromfile(out).model.backbone.token_reduction.type == 'Random'


def test_tune_refuses_a_drop_on_another_scale(folder, tmp_path, monkeypatch, capsys):
    plain = dict(metrics={'coco/bbox_mAP': 0.41}, encoder_ms=2.0, total_ms=3.0)
    monkeypatch.setattr(Judge, '_results', lambda self, *args: dict(plain=plain))
    args = ['--max-drop', '1', '--num-images', '2', '--out', str(tmp_path / 'tuned.py')]
    monkeypatch.setattr(sys, 'argv', ['tune.py', str(folder / 'plain.py'), str(folder / 'plain.pth'), *args])
    with pytest.raises(SystemExit):
        runpy.run_path(str(TOOLS / 'tune_reduction.py'), run_name='__main__')
    assert '--max-drop 1.0 lets any setting pass: coco/bbox_mAP of the plain model is 0.410' in capsys.readouterr().err


def test_analyze_and_benchmark(printing, folder, tmp_path):
    printed = printing(
        'analyze_tokens', folder / 'reduced.py', folder / 'plain.pth', '--out', tmp_path, '--maps', '--repeats', 1
    )
    assert 'TokenAdapter' in printed
    drawn = sorted(path.stem for path in (tmp_path / 'maps').iterdir())
    assert drawn == ['blue0_TokenAdapter', 'blue1_TokenAdapter', 'blue2_TokenAdapter', 'green0_TokenAdapter']
    picture = cv2.imread(str(tmp_path / 'maps/blue0_TokenAdapter.jpg'))
    blue, _, red = picture[60:200, 100:300].reshape(-1, 3).mean(0)
    assert blue > red + 50
    printed = printing('benchmark', folder / 'plain.py', folder / 'reduced.py', '--shape', 64, 64, '--repeats', 1)
    assert 'whole model' in printed


def test_deployed_cropr_predicts_what_it_did(tool, folder, tmp_path):
    status, error = tool('train', folder / 'cropr.py', '--work-dir', tmp_path)
    assert status == 0, error
    status, error = tool('deploy_model', folder / 'cropr.py', tmp_path / 'iter_2.pth', tmp_path / 'small.pth')
    assert status == 0, error
    models = [
        init_model(str(folder / 'cropr.py'), str(tmp_path / 'iter_2.pth'), device='cpu'),
        init_model(str(tmp_path / 'small.py'), str(tmp_path / 'small.pth'), device='cpu'),
    ]
    image = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8)
    one, other = (model.test_step(dict(inputs=[image]))[0].pred_score for model in models)
    torch.testing.assert_close(one, other)
    assert sum(p.numel() for p in models[1].parameters()) < sum(p.numel() for p in models[0].parameters())


@pytest.mark.parametrize('name', ['plain', 'reduced'])
def test_an_exported_file_gives_the_scores(printing, folder, tmp_path, name):
    onnxruntime = pytest.importorskip('onnxruntime')
    file = tmp_path / f'{name}.onnx'
    args = [folder / f'{name}.py', folder / 'plain.pth', '--out', file, '--repeats', 0]
    printed = printing('export', *args)
    assert 'image (batch, 3, 64, 64) uint8 -> scores and labels' in printed
    session = onnxruntime.InferenceSession(str(file))
    images = [cv2.imread(str(path)) for path in sorted((folder / 'data/val').glob('*/*.png'))]
    scores, labels = session.run(['scores', 'labels'], dict(image=np.stack(images).transpose(0, 3, 1, 2)))
    wanted, _ = expected(folder, config=name)
    np.testing.assert_allclose(scores, wanted, atol=1e-4)
    assert np.array_equal(labels, scores.argmax(1)) and len(set(labels)) > 1


def dense(folder, **model):
    cfg = Config.fromfile(folder / 'plain.py')
    cfg.merge_from_dict(dict(model=model))
    return cfg


FCN = dict(type='mmseg.FCNHead', in_channels=32, channels=8, num_convs=1, kernel_size=1, num_classes=4)


def test_heads_of_another_task_are_refused(folder, tmp_path):
    cases = {
        'model.head is a FCNHead, which predicts places in an image, but the model, of type ImageClassifier': dict(
            head=dict(FCN, _delete_=True)
        ),
        "model.backbone.out_type='cls_token' gives no map of features, which model.decode_head needs: set": dict(
            type='mmtr.EncoderDecoder', head=None, decode_head=FCN, train_cfg=None, test_cfg=dict(mode='whole')
        ),
        'model.decode_head predicts places in an image, but the model, of type ImageClassifier': dict(decode_head=FCN),
    }
    for sentence, changes in cases.items():
        cfg = dense(folder, **changes)
        if changes.get('type') == 'mmtr.EncoderDecoder':
            del cfg.model.head
            cfg.data_preprocessor = dict(type='mmseg.SegDataPreProcessor')
        with pytest.raises(UserError, match=sentence):
            build_model(cfg)
        cfg.work_dir, cfg.launcher, cfg.experiment_name = str(tmp_path / 'work'), 'none', f'run_{next(RUNS)}'
        with pytest.raises(UserError, match=sentence), runner(cfg, ('test_dataloader',)):
            pass
    cfg.model.pop('decode_head')
    build_model(cfg)
