import json
from pathlib import Path

import pytest

from mmtr import UserError
from mmtr.reports.benchmarks import refresh

ROOT = Path(__file__).parents[2]


def reduced(miou, encoder_ms, total_ms=10.0, **settings):
    return dict(
        token_reduction=settings or None,
        metrics=dict(mIoU=miou),
        class_iou=dict(sky=miou + 1, pole=0.5),
        encoder_ms=encoder_ms,
        total_ms=total_ms,
        gflops=2.0,
        tokens_per_layer='4 x2',
    )


@pytest.fixture
def folder(tmp_path):
    machine = dict(cpu='Some CPU', threads=2, torch='2.9', dtype='float32')
    compared = dict(
        command='tools/compare.py c.py w.pth all.py',
        images=7,
        machine=machine,
        results={
            'plain': reduced(40.0, 30.0),
            'Pool (5, 12) 0.3': reduced(39.0, 20.0),
            'Pool (2, 12) 0.3': reduced(38.5, 15.0),
            'Drop, last 0.5': reduced(20.0, 10.0),
        },
    )
    (tmp_path / 'compare.json').write_text(json.dumps(compared))

    def timed(config, ms, gflops, share):
        return dict(
            part='backbone',
            config=config,
            ms_per_image=ms,
            ms_per_image_quartiles=[ms - 1, ms + 1],
            images_per_second=1e3 / ms,
            gflops=gflops,
            parameters=9,
            peak_memory_bytes=5e6,
            speed_up=100 / ms,
            gflops_ratio=gflops / 8,
            reducer_share=share,
        )

    run = dict(
        command='tools/benchmark.py c.py',
        machine=machine,
        settings=dict(shape=[64, 96], batch_size=2),
        results=[timed('plain', 100.0, 8.0, None), timed('plain@type=Pool', 50.0, 4.0, 0.01)],
    )
    (tmp_path / 'speed.json').write_text(json.dumps(run))
    return tmp_path


def table(folder, mark):
    text = refresh(f'Before\n\n<!-- {mark} -->\nold\n<!-- end -->\nafter\n', folder)
    assert text.startswith(f'Before\n\n<!-- {mark} -->\n') and text.endswith('\n<!-- end -->\nafter\n')
    assert 'old' not in text and refresh(text, folder) == text
    return text


def test_speed(folder):
    text = table(folder, 'speed speed.json')
    assert '| plain@type=Pool | 50 | 49-51 | 4.0 | 5 | 2.00x | 2.00x | 1.0% |' in text
    assert '64x96 pixels, batch 2, Some CPU, 2 threads, float32, torch 2.9.' in text
    assert 'python tools/benchmark.py c.py' in text


def test_a_few_milliseconds_have_decimals(folder):
    run = json.loads((folder / 'speed.json').read_text())
    run['results'][1].update(ms_per_image=1.234, ms_per_image_quartiles=[0.987, 20.4])
    (folder / 'speed.json').write_text(json.dumps(run))
    assert '| plain@type=Pool | 1.23 | 0.99-20 | 4.0 |' in table(folder, 'speed speed.json')


def test_accuracy_of_chosen_rows(folder):
    assert 'Drop, last' in table(folder, 'accuracy compare.json')
    text = table(folder, 'accuracy compare.json Pool (2, 12) 0.3')
    assert 'Drop, last' not in text and '| Pool (2, 12) 0.3 | 38.50 | 2.00 | 15.0 | 2.00 | 100.0 | 1.00 |' in text


def test_classes(folder):
    assert '| Pool (5, 12) 0.3 | 40.0 | 0.5 |' in table(folder, 'classes compare.json')


def test_matched_speed_takes_the_best_that_is_fast_enough(folder):
    text = table(folder, 'matched compare.json')
    early, late = '39.00 ((5, 12) 0.3) | ' * 2, '38.50 ((2, 12) 0.3) | ' * 2
    assert f'| Pool | {early}{late} |  |\n' in text
    assert '| Drop, last | ' + '20.00 (0.5) | ' * 5 + '20.00 (0.5) |\n' in text and 'plain: 40.00' in text


def test_resolution(folder):
    (folder / 'runs').mkdir()
    (folder / 'speed.json').rename(folder / 'runs/a.json')
    assert '| plain | 64x96 | 2 | float32 | 10.00 | 5 | 2.00x (2.00x) |' in table(folder, 'resolution runs')


@pytest.mark.parametrize(
    'mark, words',
    [
        ('speeds speed.json', "'speeds' is no kind of table"),
        ('speed nowhere.json', "'nowhere.json' holds no results"),
        ('accuracy speed.json', "'speed.json' holds no results"),
        ('accuracy compare.json Pol', "'compare.json' holds no"),
    ],
)
def test_wrong_marks_are_said(folder, mark, words):
    with pytest.raises(UserError, match=words):
        refresh(f'<!-- {mark} -->\n<!-- end -->', folder)


def test_the_page_is_what_the_results_give():
    page = ROOT / 'docs/benchmarks.md'
    assert refresh(page.read_text(), page.parent) == page.read_text()
