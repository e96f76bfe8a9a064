"""Converted classifiers, in the model that the tool prints, against forward passes in the layout of each source."""

import importlib.util
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.runner import load_checkpoint
from mmpretrain.structures import DataSample
from torchvision.models import VisionTransformer

from mmtr.registry import MODELS
from tests.test_converters.classifier_layouts import (
    FORMER_TORCHVISION,
    SWAG,
    TORCHVISION,
    cropr_logits,
    encoder_logits,
    encoder_state,
    image,
    mae_logits,
    timm_state,
)
from tests.test_converters.official_layouts import CLASSES, DIM, HEADS, HIDDEN, LAYERS, PATCH, SIZE

spec = importlib.util.spec_from_file_location(
    'convert_checkpoint', Path(__file__).parents[2] / 'tools/convert_checkpoint.py'
)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
TYPES = {'mmtr.ImageClassifier': 'mmpretrain.ImageClassifier', 'mmtr.ClsVisionTransformer': 'VisionTransformer'}


@pytest.fixture
def converted(tmp_path, capsys):
    """Function from a source and a file's content to the model that the tool prints, with the weights that it wrote."""

    def convert(source, content, stock=False, **reduction):
        file, out = tmp_path / 'in.pth', tmp_path / 'out.pth'
        torch.save(content, file)
        capsys.readouterr()
        tool.main(['--source', source, str(file), str(out), '--num-heads', str(HEADS)])
        said = capsys.readouterr().out
        # As a config would hold it.
        names = {}
        exec(re.search(r'(?ms)^  model = dict\(.*?^  \)$', said)[0].strip(), names)
        model = ConfigDict(names['model'])
        if stock:
            model.type, model.backbone.type = TYPES[model.type], TYPES[model.backbone.type]
        if reduction:
            model.backbone.token_reduction.update(reduction)
        model = MODELS.build(model)
        load_checkpoint(model, str(out), strict=True, logger='silent')
        model.eval()
        return model, said

    return convert


def check(model, expected):
    with torch.no_grad():
        torch.testing.assert_close(model(image(), mode='tensor'), expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.01


@pytest.mark.parametrize('stock', [False, True])
@pytest.mark.parametrize('pre_logits', [None, 24])
@pytest.mark.parametrize(
    'source, names', [('swag', SWAG), ('torchvision_vit', TORCHVISION), ('torchvision_vit', FORMER_TORCHVISION)]
)
def test_swag_and_torchvision(source, names, pre_logits, stock, converted):
    state = encoder_state(names, pre_logits=pre_logits)
    model, said = converted(source, state, stock)
    check(model, encoder_logits(image(), state, names))
    assert f'4x4 patches, of images of {SIZE[0]}x{SIZE[0]}' in said and 'align_corners' in said


@pytest.mark.parametrize('representation_size', [None, 24])
def test_torchvision_itself(representation_size, converted):
    torch.manual_seed(0)
    theirs = VisionTransformer(
        SIZE[0], PATCH, LAYERS, HEADS, DIM, HIDDEN, num_classes=CLASSES, representation_size=representation_size
    ).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    model, _ = converted('torchvision_vit', dict(model=theirs.state_dict()))
    with torch.no_grad():
        check(model, theirs(image()))


@pytest.mark.parametrize('stock', [False, True])
@pytest.mark.parametrize('norm', ['fc_norm', 'norm'])
def test_a_fine_tuned_mae(norm, stock, converted):
    state = timm_state(norm)
    check(converted('mae', dict(model=state), stock)[0], mae_logits(image(), state))


def test_a_pretrained_mae_starts_a_classifier(tmp_path, capsys):
    state = timm_state('norm', head=False, decoder=True)
    torch.save(dict(model=state), tmp_path / 'in.pth')
    tool.main(['--source', 'mae', str(tmp_path / 'in.pth'), str(tmp_path / 'out.pth'), '--num-heads', str(HEADS)])
    names = {}
    exec(re.search(r'(?ms)^  model = dict\(.*?^  \)$', capsys.readouterr().out)[0].strip(), names)
    names['model']['head'] = dict(type='LinearClsHead', num_classes=CLASSES, in_channels=DIM)
    model = MODELS.build(ConfigDict(names['model']))
    model.init_weights()
    torch.nn.init.normal_(model.backbone.ln2.weight)
    model.eval()
    own = model.state_dict()
    check(
        model,
        mae_logits(
            image(),
            {
                **state,
                **{f'fc_norm.{name}': own[f'backbone.ln2.{name}'] for name in ('weight', 'bias')},
                **{f'head.{name}': own[f'head.fc.{name}'] for name in ('weight', 'bias')},
            },
        ),
    )


@pytest.mark.parametrize('norm', ['fc_norm', 'norm'])
@pytest.mark.parametrize('r', [(), (4, 3), (4, 3, 2)], ids=['unpruned', 'fusion', 'without fusion'])
def test_cropr_classifiers_and_what_they_train_with(r, norm, converted):
    state = timm_state(norm, modules=len(r), layers=4)
    each = [cropr_logits(image()[[n]], state, 4, r) for n in range(2)]
    expected, *auxiliary = (torch.cat(logits) for logits in zip(*([main, *others] for main, others in each)))
    model, said = converted('cropr', dict(model=state), **(dict(r=list(r)) if r else {}))
    check(model, expected)
    assert ('How many tokens leave after each layer is not in the file' in said) == bool(r)
    if r:
        seen, heads = [], model.backbone.token_reducer.heads
        for head in heads.values():
            head.register_forward_hook(lambda module, args, out: seen.append(out[:, 0]))
        model.train()
        model(image(), [DataSample().set_gt_label(n) for n in range(2)], mode='loss')
        torch.testing.assert_close(seen, auxiliary, rtol=0, atol=1e-5)
        assert len(seen) == len(r)


def test_one_layout_of_two_sources_is_read_by_each_as_its_own(converted):
    state = timm_state()
    mae, said_mae = converted('mae', dict(model=state))
    check(mae, mae_logits(image(), state))
    cropr, said_cropr = converted('cropr', dict(model=state))
    expected = torch.cat([cropr_logits(image()[[n]], state, LAYERS)[0] for n in range(2)])
    check(cropr, expected)
    assert (expected - mae_logits(image(), state)).abs().max() > 1e-3
    assert 'convert that with --source cropr' in said_mae and 'convert that with --source mae' in said_cropr
