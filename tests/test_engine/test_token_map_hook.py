import cv2
import numpy as np
import pytest

from mmtr.errors import UserError
from mmtr.registry import TOKEN_REDUCERS

TOKEN_REDUCERS.import_from_location()
REDUCTIONS = [*(dict(type=name) for name in sorted(TOKEN_REDUCERS.module_dict)), dict(type='ToMe', mode='progressive')]


@pytest.fixture
def run(tiny_segmenter, make_runner, tmp_path):
    """Function that tests or trains a tiny Segmenter with the hook; gives its folder of pictures."""

    def run(reduction, action='test', backends=('LocalVisBackend',), tta=False, **settings):
        cfg = tiny_segmenter
        cfg.model.backbone = dict(
            cfg.model.backbone, type='mmtr.VisionTransformer', num_layers=4, token_reduction=reduction
        )
        cfg.custom_hooks = [dict(type='mmtr.TokenMapHook', **settings)]
        cfg.visualizer.vis_backends = [dict(type=name) for name in backends]
        if tta:
            cfg.model = dict(cfg.tta_model, module=cfg.model)
            cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline
        runner = make_runner(cfg)
        getattr(runner, action)()
        return next((tmp_path / 'work').glob('*/vis_data'))

    return run


# Tokens that merge, that leave, that are cut out of a grid: the others are drawn by the same code.
@pytest.mark.parametrize(
    'reduction',
    [
        pytest.param(cfg, marks=[pytest.mark.slow] * (cfg['type'] not in ('Cropr', 'ToMe', 'TokenAdapter')))
        for cfg in REDUCTIONS
    ],
    ids=str,
)
def test_files_and_tensorboard_hold_the_same_pictures(run, reduction):
    events = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')
    folder = run(reduction, interval=3, backends=('LocalVisBackend', 'TensorboardVisBackend'))
    files = sorted((folder / 'vis_image').glob('*tokens*'))
    assert [path.name for path in files] == ['test_tokens_2_0.png', 'test_tokens_5_0.png']
    board = events.EventAccumulator(str(folder), size_guidance=dict(images=0)).Reload()
    assert board.Tags()['images'] == ['test_tokens_2', 'test_tokens_5']
    for path, tag in zip(files, board.Tags()['images']):
        [event] = board.Images(tag)
        picture = cv2.imread(str(path))
        assert event.step == 0
        assert np.array_equal(cv2.imdecode(np.frombuffer(event.encoded_image_string, np.uint8), -1), picture)
        assert picture[26:426, :400].std() > 10 and picture.shape[1] in (3 * 406 - 6, 4 * 406 - 6)


@pytest.mark.slow
@pytest.mark.parametrize('tta', [False, True])
def test_the_picture_is_of_the_image_in_its_name(run, drawn_data, tta):
    folder = run(dict(type='TokenAdapter'), interval=6, tta=tta)
    [path] = (folder / 'vis_image').glob('*tokens*')
    image = cv2.imread(str(drawn_data / 'images/validation/5.png'))
    shown = cv2.imread(str(path))[26:426, :400]
    assert np.array_equal(shown, cv2.resize(image, (400, 400), interpolation=cv2.INTER_NEAREST))


@pytest.mark.slow
def test_validation_during_training_is_pictured_at_its_iteration(run):
    folder = run(dict(type='ToMe'), 'train', interval=6)
    assert sorted(path.name for path in (folder / 'vis_image').glob('*tokens*')) == [
        'val_tokens_5_2.png',
        'val_tokens_5_4.png',
    ]


def test_nothing_reduced_is_nothing_drawn(run):
    folder = run(None, interval=1)
    assert not list(folder.glob('**/*tokens*'))
    assert 'no token was reduced' in next(folder.parent.glob('*.log')).read_text()


@pytest.mark.slow
def test_a_backbone_without_tokens_is_said(tiny_segmenter, make_runner):
    tiny_segmenter.custom_hooks = [dict(type='mmtr.TokenMapHook')]  # and a stock backbone
    with pytest.raises(UserError, match='cannot picture the tokens of a VisionTransformer: use a backbone of mmtr'):
        make_runner(tiny_segmenter).test()
    tiny_segmenter.custom_hooks.append(dict(type='mmtr.TokenReductionHook', token_reduction=dict(type='TokenAdapter')))
    make_runner(tiny_segmenter).test()


@pytest.mark.parametrize('setting', [dict(interval=0), dict(max_layers=1.5)], ids=str)
def test_settings_are_whole_numbers(tiny_segmenter, make_runner, setting):
    tiny_segmenter.custom_hooks = [dict(type='mmtr.TokenMapHook', **setting)]
    with pytest.raises(Exception, match='must be a whole number above 0'):
        make_runner(tiny_segmenter)


def test_first_window_of_each_image_of_a_batch(run, tiny_segmenter, drawn_data):
    tiny_segmenter.model.test_cfg = dict(mode='slide', crop_size=(32, 48), stride=(16, 16))
    tiny_segmenter.test_dataloader.batch_size = 2
    folder = run(dict(type='ToMe'), interval=3)
    for i in (4, 5):
        window = cv2.imread(str(drawn_data / f'images/validation/{i}.png'))[:32, :48]
        shown = cv2.imread(str(folder / f'vis_image/test_tokens_{i}_0.png'))[26:293, :400]
        assert np.array_equal(shown, cv2.resize(window, (400, 267), interpolation=cv2.INTER_NEAREST))
