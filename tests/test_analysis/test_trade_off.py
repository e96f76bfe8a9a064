import numpy as np
import pytest
from PIL import Image

from mmtr.visualization.trade_off import draw_trade_off, pareto_front


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


def test_each_method_has_its_colour_in_the_figure(tmp_path):
    def result(method, ms, accuracy):
        return dict(token_reduction=method and dict(type=method), total_ms=ms, metrics=dict(mIoU=accuracy))

    results = {'plain': result(None, 100, 40.), 'ToMe 0.1': result('ToMe', 80, 39.),
               'ALGM 0.9': result('ALGM', 50, 38.)}
    draw_trade_off(results, 'mIoU', [tmp_path / 'a.png'], 'title')
    colors = {tuple(pixel) for pixel in np.asarray(Image.open(tmp_path / 'a.png').convert('RGB')).reshape(-1, 3)}
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00)} <= colors
    assert (0x00, 0x9E, 0x73) not in colors, 'two methods, no third colour'
