"""ViTDet's backbone and SAM's image encoder: converted weights in ``mmtr.ViTDet``, against forward passes of theirs."""

import importlib.util
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from classifier_layouts import timm_state
from mmengine.config import Config
from official_layouts import PATCH
from vitdet_layout import DIM, HEADS, HIDDEN, LAYERS, SIZE, WHOLE, WINDOW, encoder, sam_state, vitdet_state

from mmtr import UserError
from mmtr.converters import sam, vitdet
from mmtr.models.backbones import ViTDet

ROOT = Path(__file__).parents[2]
STATES = {'vitdet': (vitdet, vitdet_state, 'backbone.net.'), 'sam': (sam, sam_state, 'image_encoder.')}
every_source = pytest.mark.parametrize('source', STATES)


def settings_of(notes):
    return {key.removeprefix('backbone.'): value for key, value in notes.settings.items()}


@every_source
def test_outputs_are_those_of_the_release(source):
    module, make, prefix = STATES[source]
    state = make()
    converted, notes = module.convert(state)
    assert settings_of(notes) == dict(
        img_size=SIZE,
        pretrain_img_size=SIZE if source == 'sam' else (4 * PATCH, 4 * PATCH),
        patch_size=PATCH,
        in_channels=3,
        embed_dims=DIM,
        num_layers=LAYERS,
        num_heads=HEADS,
        mlp_ratio=HIDDEN / DIM,
        window_size=WINDOW,
        global_attn_indexes=WHOLE,
    )
    model = ViTDet(**settings_of(notes)).eval()
    model.load_state_dict(converted, strict=True)
    image = torch.randn(2, 3, *SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        torch.testing.assert_close(model(image)[0], encoder(image, state, prefix), rtol=0, atol=1e-5)


@every_source
def test_every_key_of_the_backbone_is_needed_and_the_others_are_left_out(source):
    module, make, prefix = STATES[source]
    state = make()
    assert 'were left behind' in module.convert(state)[1].remarks[0]
    kept = [key for key in state if key.startswith(prefix) and '.neck.' not in key]
    assert len(module.convert(state)[0]) == len(kept) < len(state)
    for key in kept:
        with pytest.raises(UserError, match=key.removeprefix(prefix).replace('.', r'\.')):
            module.convert({k: v for k, v in state.items() if k != key})
    with pytest.raises(UserError, match='blocks.0.residual.conv1.weight'):
        module.convert({**state, f'{prefix}blocks.0.residual.conv1.weight': torch.ones(1)})
    with pytest.raises(UserError, match=r'square windows of one size'):
        wrong = {f'{prefix}blocks.2.attn.rel_pos_{axis}': torch.zeros(7, DIM // HEADS) for axis in 'hw'}
        module.convert({**state, **wrong})


@pytest.mark.parametrize('protocol', range(2, pickle.HIGHEST_PROTOCOL))
def test_a_plain_pickle_of_arrays_is_read_as_data(protocol, tmp_path):
    state = vitdet_state()
    arrays = {key: value.numpy() for key, value in state.items()}
    (tmp_path / 'model.pkl').write_bytes(pickle.dumps(dict(model=arrays, __author__='x'), protocol))
    (read,) = vitdet.read(str(tmp_path / 'model.pkl'))
    assert read.keys() == state.keys() and all(torch.equal(value, read[key]) for key, value in state.items())
    (tmp_path / 'code.pkl').write_bytes(pickle.dumps(dict(model=dict(a=Path('x'))), protocol))
    with pytest.raises(UserError, match="is refused, nothing in it was run: it holds 'pathlib.*save its weights"):
        vitdet.read(str(tmp_path / 'code.pkl'))


def test_damaged_and_other_pickles_are_refused(tmp_path):
    whole = pickle.dumps(dict(model=dict(a=np.ones(99))), 4)
    for content, said in (
        (whole[:-40], 'corrupt or no checkpoint'),
        (pickle.dumps(3), 'holds a int'),
        (b'', 'corrupt'),
    ):
        (tmp_path / 'model.pkl').write_bytes(content)
        with pytest.raises(UserError, match=said):
            vitdet.read(str(tmp_path / 'model.pkl'))


@torch.no_grad()
def test_training_starts_from_a_mae(tmp_path):
    state = timm_state('norm', head=False, dim=768, layers=12, hidden=96)
    converted, notes = vitdet.convert(state)
    assert notes.remarks[0] == 'The file has no relative positions: they start at zero, as in ViTDet.'
    torch.save(dict(state_dict=converted), tmp_path / 'mae.pth')
    own = dict(img_size=80, window_size=2, global_attn_indexes=[3], pretrained=str(tmp_path / 'mae.pth'))
    model = ViTDet(**settings_of(notes), **own)
    model.init_weights()
    assert not model.layers[0].attn.rel_pos_h.any() and len(model.layers[3].attn.rel_pos_w) == 2 * 80 // PATCH - 1
    assert torch.equal(model.layers[5].ffn.fc2.weight, state['blocks.5.mlp.fc2.weight'])
    assert torch.equal(model.pos_embed, state['pos_embed'])
    with pytest.raises(UserError, match='192 channels and 12 layers, which is no MAE of size B, L or H'):
        vitdet.convert(timm_state('norm', head=False, dim=192, layers=12, hidden=96))


def test_the_released_size_is_that_of_the_config(tmp_path, capsys):
    large = {DIM: 768, 3 * DIM: 2304, HIDDEN: 3072, DIM // HEADS: 64, 5: 27, 15: 127, 17: 197, PATCH: 16}
    state = {}
    for key, value in vitdet_state().items():
        shape = [large.get(n, n) for n in value.shape]
        number = key.split('.')[3] if '.blocks.' in key else None
        for i in range(12):
            if number in (None, str(int(i % 3 == 2))):
                state[key.replace(f'blocks.{number}.', f'blocks.{i}.')] = torch.empty(shape, device='meta')
    notes = vitdet.convert(state)[1]
    assert notes.fits == 'cascade-mask-rcnn_vitdet-b_*.py'
    spec = importlib.util.spec_from_file_location('convert_checkpoint', ROOT / 'tools/convert_checkpoint.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    cfg = Config.fromfile(ROOT / 'configs/cascade-mask-rcnn_vitdet-b_coco.py')
    assert tool.deviations(notes.settings, cfg.model) == {}
    assert tool.advice(notes, Path('out.pth'), False)[1].endswith('--cfg-options model.backbone.pretrained=out.pth')
