import re
import shutil
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mmtr.analysis.flops import count_flops
from mmtr.analysis.shapes import ShapesOnly
from mmtr.errors import UserError
from mmtr.inference.model import build_model
from mmtr.reports.model_cost import cost, pixels_of, tokens_in_words
from mmtr.reports.model_zoo import Zoo, measured_in_words, read_notes

ROOT = Path(__file__).parents[2]
CONFIGS = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
PAGE = (ROOT / 'docs/model_zoo.md').read_text()
ROWS = {name: line for line in PAGE.splitlines() for name in re.findall(r'^\| \[(\S+)\]\(\.\./configs/\1\.py\) ', line)}
SMALL = ('segmenter_vit_tadapter_demo', 'segmenter_vit-t_cropr_camvid', 'dinov2-ti_full_nuclei')
#: One of each large table, which would take minutes whole.
LARGE = (
    'segmenter_vit-s_tadapter_ade20k',
    'segmenter_eva02-s_cropr_ade20k',
    'segformer_mit-b5_gridpool_cityscapes',
    'maskdino_swin-l_tadapter_coco-instance',
    'eomt_dinov2-s_tadapter_coco-panoptic-640',
    'dinov3-s_simple_tadapter_ade20k',
)


@pytest.fixture(scope='module')
def zoo():
    return Zoo(ROOT)


def small_model(**backbone):
    """Config of a segmentor of 64x64 pixels."""
    settings = dict(img_size=(64, 64), embed_dims=32, num_layers=2, num_heads=2, patch_size=8)
    return Config(
        dict(
            default_scope='mmseg',
            crop_size=(64, 64),
            model=dict(
                type='EncoderDecoder',
                data_preprocessor=dict(type='SegDataPreProcessor'),
                backbone={**settings, **backbone},
                decode_head=dict(type='FCNHead', in_channels=32, in_index=-1, channels=8, num_classes=3, num_convs=1),
            ),
        )
    )


def test_the_page_has_each_config_once():
    assert sorted(re.findall(r'^\| \[(\S+)\]', PAGE, re.MULTILINE)) == CONFIGS == sorted(ROWS)


@pytest.mark.parametrize('name', [*SMALL, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
def test_rows_are_those_of_the_page(zoo, name):
    _, cells = zoo.row(name)
    assert f'| {" | ".join(cells)} |' == ROWS[name], 'run python tools/model_zoo.py'


@pytest.mark.parametrize('new', [[], ['segmenter_vit_tadapter_demo']])
def test_only_new_configs_are_counted(tmp_path, new):
    shutil.copytree(ROOT / 'docs', tmp_path / 'docs')
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    gone = ROWS['dinov2-ti_full_nuclei'].replace('dinov2-ti_full_nuclei', 'gone')
    lines = [line for line in PAGE.splitlines() if line not in [ROWS[name] for name in new]]
    (tmp_path / 'docs/model_zoo.md').write_text('\n'.join([*lines, gone]))
    zoo, counted = Zoo(tmp_path, only_new=True), []
    assert zoo.page(lambda: counted.append(1)) == PAGE
    assert zoo.new == new and len(counted) == len(new)


@pytest.mark.slow
@pytest.mark.parametrize(
    'title',
    [title for title in Zoo(ROOT).notes['tables'] if title.startswith(('Kvasir', 'CamVid', 'Cell nuclei', 'The demo'))],
)
def test_tables_are_those_of_the_page(zoo, title):
    assert zoo.table(title) in PAGE


@pytest.mark.parametrize(
    'backbone',
    [
        dict(type='mmtr.VisionTransformer', token_reduction=dict(type='ToMe', r=0.3)),
        dict(type='mmtr.VisionTransformer', token_reduction=dict(type='TokenAdapter', ratio=0.3)),
        dict(type='mmtr.EVA02', token_reduction=dict(type='EViT', layers=(1,))),
        dict(type='mmtr.DINOv2', peft=dict(type='LoRA'), token_reduction=dict(type='Expediting', layer=1, grid=0.5)),
    ],
    ids=lambda backbone: backbone['type'],
)
def test_what_is_counted_for_shapes_alone_is_what_a_computed_pass_counts(backbone):
    model, images = build_model(small_model(**backbone)), torch.randn(1, 3, 64, 72)
    computed = count_flops(model, images)
    with ShapesOnly():
        assert count_flops(model, images) == computed


def test_products_are_not_computed_for_shapes_alone():
    x = torch.randn(2, 3, 4)
    with ShapesOnly():
        for product in (x @ x.mT, torch.nn.functional.linear(x, x[0]), torch.einsum('bnc,bmc->bnm', x, x)):
            assert product.shape == (2, 3, 3) and not product.any()
    assert (x @ x.mT).all()


def test_cropr_is_counted_as_it_is_deployed():
    reduction = dict(type='Cropr', task='semantic', num_classes=3, r=8)
    backbone = dict(type='mmtr.VisionTransformer', num_layers=4)
    found = cost(small_model(**backbone, token_reduction=reduction), (64, 64))
    plain = cost(small_model(**backbone), (64, 64))
    whole = sum(p.numel() for p in build_model(small_model(**backbone, token_reduction=reduction)).parameters())
    assert plain.parameters < found.parameters < whole and found.gflops < plain.gflops


def test_dar_runs_the_ffn_of_half_of_the_tokens():
    backbone = dict(type='mmtr.DINOv2', num_layers=2)
    plain = cost(small_model(**backbone), (64, 64))
    found = cost(small_model(**backbone, token_reduction=dict(type='DAR')), (64, 64))
    ffn = 2 * 64 * 8 * 32 * 32 / 1e9  # 2 layers, 64 patches, two products of 32 x 128
    assert plain.gflops - found.gflops == pytest.approx(ffn / 2, rel=0.1)


def test_what_depends_on_the_image_has_no_number():
    found = cost(
        small_model(
            type='mmtr.VisionTransformer',
            num_layers=3,
            token_reduction=dict(type='ALGM', local_layer=1, global_layer=2),
        ),
        (64, 64),
    )
    assert found.gflops is None and tokens_in_words(found) == 'by image'


def test_the_size_is_that_of_the_training_crops():
    cfg = small_model()
    assert pixels_of(cfg) == (64, 64)
    cfg.pop('crop_size')
    cfg.model.data_preprocessor.batch_augments = [dict(type='BatchFixedSizePad', size=(96, 80))]
    assert pixels_of(cfg) == (96, 80)
    cfg.model.data_preprocessor.pop('batch_augments')
    assert pixels_of(cfg) == (64, 64)


@pytest.mark.parametrize(
    'notes, words',
    [
        (dict(published=dict(gone='1 mIoU (TA)')), "'gone' in 'published' is no config"),
        (dict(published=dict(one='1 mIoU (XY, 2)')), "'1 mIoU (XY, 2)' of 'one' names no source: give one of TA"),
        (dict(measured=dict(gone=[])), "'gone' in 'measured' is no config"),
        (dict(tables={}), "'one' must be in one table, and is in none"),
        (dict(tables={'A': ['*'], 'B': ['one']}), "'one' must be in one table, and is in ['A', 'B']"),
    ],
)
def test_notes_that_fit_no_config_are_errors(tmp_path, notes, words):
    good = dict(tables={'A': ['o*']}, sources=dict(TA='a paper'), published={}, measured={}, pixels={})
    Config({**good, **notes}).dump(tmp_path / 'notes.yml')
    with pytest.raises(UserError, match=re.escape(words)):
        read_notes(tmp_path / 'notes.yml', ['one'])


def test_what_was_measured_is_read_from_its_record():
    results = ROOT / 'docs/results'
    words, machine = measured_in_words(dict(file='camvid_targets', row='GridPool (2, 12) 0.62'), 'any', results)
    assert words == '[38.51 mIoU, encoder 3.09x](results/camvid_targets.json)'  # as in docs/benchmarks.md
    assert machine == 'AMD EPYC, 2 threads, float32, torch 2.13.0+cpu'
    note = dict(file='segmenter_vit-l_640', to='segmenter_vit-l_ade20k')
    words, _ = measured_in_words(note, 'segmenter_tadapter_ade20k', results)
    assert words == '[model 1.42x, backbone 1.46x](results/segmenter_vit-l_640.json)'
    with pytest.raises(UserError, match="nothing is recorded for 'gone'"):
        measured_in_words(note, 'gone', results)
