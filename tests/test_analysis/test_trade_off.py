import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmtr.analysis.trade_offs import by_speed, front_beyond_plain, main_of, pareto_front, table, trade_offs
from mmtr.errors import UserError
from mmtr.visualization import trade_off
from mmtr.visualization.trade_off import draw_trade_off


def result(reduction, ms, accuracy, encoder_ms=1.0):
    return dict(token_reduction=reduction, total_ms=ms, encoder_ms=encoder_ms, gflops=1.0, metrics=dict(mIoU=accuracy))


@pytest.mark.parametrize('seed', range(5))
def test_nothing_beats_the_front_and_it_beats_the_rest(seed):
    rng = np.random.default_rng(seed)
    points = {str(i): (int(speed), int(accuracy)) for i, (speed, accuracy) in enumerate(rng.integers(0, 12, (40, 2)))}

    def beaten(name):
        speed, accuracy = points[name]
        return any(s >= speed and a >= accuracy and (s, a) != (speed, accuracy) for s, a in points.values())

    front = pareto_front(points)
    assert {points[name] for name in front} == {points[name] for name in points if not beaten(name)}
    assert len({points[name] for name in front}) == len(front)
    assert [points[name][0] for name in front] == sorted((points[name][0] for name in front), reverse=True)


def test_the_main_metric_is_of_what_the_evaluator_gives():
    assert main_of(dict(aAcc=1.0, mIoU=2.0)) == 'mIoU'
    assert main_of({'single-label/precision': 1.0, 'accuracy/top5': 9.0, 'accuracy/top1': 3.0}) == 'accuracy/top1'
    assert main_of({'coco/bbox_mAP': 0.4, 'coco/bbox_mAP_50': 0.5}) == 'coco/bbox_mAP'
    assert main_of({'single-label/support': [1, 2], 'accuracy/top1_thr-0.10': 3.0}) == 'accuracy/top1_thr-0.10'
    with pytest.raises(UserError, match='gives no number to rank by, but a'):
        main_of(dict(a=[1.0]))


def test_each_method_has_its_colour_in_the_figure(tmp_path):
    results = {
        'plain': result(None, 100, 40.0),
        'ToMe 0.1': result(dict(type='ToMe'), 80, 39.0),
        'ALGM 0.9': result(dict(type='ALGM'), 50, 38.0),
    }
    draw_trade_off(results, 'mIoU', [tmp_path / 'a.png'], 'title')
    colors = {tuple(pixel) for pixel in np.asarray(Image.open(tmp_path / 'a.png').convert('RGB')).reshape(-1, 3)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colors
    assert (0x00, 0x9E, 0x73) not in colors, 'two methods, no third colour'


def test_the_front_begins_beyond_plain_and_plain_comes_first_in_the_table():
    results = dict(
        plain=result(None, 100, 40.0),
        slower_better=result(dict(type='ToMe'), 120, 41.0),
        fast=result(dict(type='ToMe'), 50, 38.0),
        beaten=result(dict(type='ALGM'), 60, 37.0),
        better=result(dict(type='ALGM'), 80, 40.5),
    )
    points = trade_offs(results, 'mIoU')
    assert points['fast'] == (2.0, 38.0) and points['plain'] == (1.0, 40.0)
    assert front_beyond_plain(points) == ['fast', 'better']
    assert list(by_speed(results)) == ['plain', 'slower_better', 'better', 'beaten', 'fast']
    assert [row[0] for row in table(results)] == ['reduction', *results]


def test_metrics_of_one_are_written_finer_than_metrics_of_a_hundred():
    results = {'plain': result(None, 100, 40.0)}
    results['plain']['metrics'].update({'coco/bbox_mAP': 0.351})
    assert table(results)[1][1:3] == ['40.00', '0.351']


def drawn(monkeypatch, results):
    """The axes of a figure of ``results``: the lines as {method: points}, and the labels."""
    figures = []
    monkeypatch.setattr(trade_off, 'Figure', lambda **kwargs: figures.append(Figure(**kwargs)) or figures[0])
    draw_trade_off(results, 'mIoU', [])
    (axes,) = figures[0].axes
    names = {line.get_color(): line.get_label() for line in axes.lines if not line.get_label().startswith('_')}
    lines = {
        names[line.get_color()]: line.get_xydata().tolist()
        for line in axes.lines
        if line.get_linestyle() == '-' and len(line.get_xdata()) > 1 and line.get_color() in names
    }
    return axes, lines, {text.get_text() for text in axes.texts}


def test_a_method_is_a_line_over_its_strengths_and_far_outliers_do_not_squeeze_the_rest(monkeypatch):
    results = {'plain': result(None, 100, 40.0), 'far off': result(dict(type='EViT'), 90, 2.0)}
    for strength in (1, 2, 3):
        for kind in ('ToMe', 'ALGM'):
            results[f'{kind} {strength}'] = result(
                dict(type=kind, r=strength), 100 - 10 * strength, 40 - 0.3 * strength - (kind == 'ALGM')
            )
    results['ToMe progressive 1'] = result(dict(type='ToMe', mode='progressive', r=1), 95, 39.0)
    axes, lines, labels = drawn(monkeypatch, results)
    low, high = axes.get_ylim()
    assert 30 < low < 38.1 and 40 < high < 41
    assert lines['ToMe'] == [pytest.approx([100 / (100 - 10 * s), 40 - 0.3 * s]) for s in (3, 2, 1)]
    assert lines['front'] == lines['ToMe'] and len(lines['ALGM']) == 3 and 'ToMe progressive' not in lines
    assert {'plain', 'far off: 2'} <= labels
    (star,) = axes.collections
    assert star.get_offsets().tolist() == [[1, 40]] and axes.get_xlabel().startswith('speed-up against plain')
