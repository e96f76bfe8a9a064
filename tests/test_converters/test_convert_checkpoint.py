"""tools/convert_checkpoint.py: files in, files out, and what it says."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from eva02_layout import eva02_state
from mmengine.runner.checkpoint import CheckpointLoader
from official_layouts import CLASSES, DIM, HEADS, PATCH, augreg_state, draw, mask_state, variant, vit_shapes
from safetensors.torch import load_file, save_file
from test_eomt import on_dinov3

TOOL = Path(__file__).resolve().parents[2] / 'tools' / 'convert_checkpoint.py'
spec = importlib.util.spec_from_file_location('convert_checkpoint', TOOL)
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)


@pytest.fixture
def release(tmp_path):
    """A folder as Segmenter releases it; their yaml.dump too writes the image size as a Python tuple."""
    folder = tmp_path / 'seg_tiny_mask'
    folder.mkdir()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], 0.1, momentum=0.9)
    torch.save(
        dict(model=mask_state(), optimizer=optimizer.state_dict(), n_cls=CLASSES, epoch=1), folder / 'checkpoint.pth'
    )
    text = yaml.dump(variant(decoder=dict(name='mask_transformer', n_layers=2)))
    assert 'python/tuple' in text
    (folder / 'variant.yml').write_text(text)
    return folder


def convert(source, *paths):
    tool.main(['--source', source, *map(str, paths)])


def refused(capsys, source, *paths):
    """What the tool says as it exits with 2; nothing else may be printed."""
    with pytest.raises(SystemExit) as exit:
        convert(source, *paths)
    assert exit.value.code == 2
    said = capsys.readouterr()
    assert said.out == '' and said.err.startswith('Error: ') and said.err.count('\n') == 1
    return said.err


def test_folder_and_file_give_the_same_checkpoint(release, tmp_path, capsys):
    convert('segmenter', release, tmp_path / 'new' / 'a.pth')
    convert('segmenter', release / 'checkpoint.pth', tmp_path / 'new' / 'b.pth')
    assert sorted(p.name for p in (tmp_path / 'new').iterdir()) == ['a.pth', 'b.pth']
    a, b = (torch.load(tmp_path / 'new' / f'{n}.pth', weights_only=True) for n in 'ab')
    assert all(torch.equal(a['state_dict'][key], value) for key, value in b['state_dict'].items())
    assert a['meta']['source'] == 'segmenter' and a['meta']['dataset'] == 'ade20k'
    assert a['meta']['settings']['backbone.num_heads'] == HEADS
    said = capsys.readouterr().out
    assert 'model.backbone.norm_cfg.eps=1e-05' in said and f'model.backbone.patch_size={PATCH}' in said


@pytest.mark.parametrize('source, suffix', [('timm_vit', '.pth'), ('timm_vit', '.safetensors'), ('augreg_npz', '.npz')])
@pytest.mark.parametrize('wanted', ['.pth', '.safetensors'])
def test_backbones_from_and_to_either_format(source, suffix, wanted, tmp_path, capsys):
    path, out = tmp_path / f'vit{suffix}', tmp_path / f'out{wanted}'
    if suffix == '.npz':
        np.savez(path, **{key: value.numpy() for key, value in augreg_state().items()})
    elif suffix == '.pth':
        torch.save({'model': draw(vit_shapes())}, path)
    else:
        save_file(draw(vit_shapes()), path)
    convert(source, path, out)
    state = load_file(out) if wanted == '.safetensors' else CheckpointLoader.load_checkpoint(str(out))['state_dict']
    assert state['layers.1.attn.attn.in_proj_weight'].shape == (3 * DIM, DIM)
    assert f'model.pretrained={out}' in capsys.readouterr().out


def test_only_what_deviates_from_the_config_is_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tool, 'CONFIGS', tmp_path)
    (tmp_path / 'segmenter_vit-x_ade20k.py').write_text(
        'model = dict(data_preprocessor=dict(mean=[127.5, 127.5, 127.5]), backbone=dict(img_size=512, '
        "norm_cfg=dict(type='LN', eps=1e-6)), test_cfg=dict(stride=(480, 480)))"
    )
    settings = {
        'data_preprocessor.mean': (127.5,) * 3,
        'backbone.img_size': (512, 512),
        'backbone.patch_bias': False,
        'backbone.norm_cfg.eps': 1e-5,
        'test_cfg.stride': (512, 512),
    }
    notes = tool.SOURCES['segmenter'].Notes({}, settings, 'segmenter_vit-x_ade20k.py')
    assert tool.advice(notes, Path('out.pth'), whole_model=True) == [
        'It fits mmtr::segmenter_vit-x_ade20k.py. To use it:',
        '  python -m mmtr test mmtr::segmenter_vit-x_ade20k.py out.pth --cfg-options '
        "model.backbone.norm_cfg.eps=1e-05 'model.test_cfg.stride=(512,512)'",
    ]


def test_the_number_of_heads_is_for_those_that_need_it(tmp_path, capsys):
    save_file(eva02_state(True), tmp_path / 'eva02.safetensors')
    convert('eva02', tmp_path / 'eva02.safetensors', tmp_path / 'out.pth', '--num-heads', 4)
    assert torch.load(tmp_path / 'out.pth', weights_only=True)['meta']['settings']['backbone.num_heads'] == 4
    assert 'backbone.num_heads=4' in capsys.readouterr().out
    save_file(draw(vit_shapes()), tmp_path / 'vit.safetensors')
    said = refused(capsys, 'timm_vit', tmp_path / 'vit.safetensors', tmp_path / 'vit.pth', '--num-heads', 4)
    assert said == 'Error: --num-heads is for eva02, cropr, swag, torchvision_vit, mae: timm_vit needs none.\n'


def test_a_base_is_for_those_that_need_it(tmp_path, capsys):
    delta, _, base = on_dinov3(delta=True)
    torch.save(delta, tmp_path / 'pytorch_model.bin')
    save_file(base, tmp_path / 'model.safetensors')
    said = refused(capsys, 'eomt', tmp_path / 'pytorch_model.bin', tmp_path / 'out.pth')
    assert said.endswith('128 channels and 2 layers: give the file of that too, --base.\n')
    convert('eomt', tmp_path / 'pytorch_model.bin', tmp_path / 'out.pth', '--base', tmp_path / 'model.safetensors')
    assert 'DINOv3 License' in capsys.readouterr().out
    written = torch.load(tmp_path / 'out.pth', weights_only=True)['state_dict']
    assert torch.allclose(
        written['backbone.cls_token'],
        base['embeddings.cls_token'] + delta['network.encoder.backbone.patch_embed.cls_token'],
    )
    save_file(draw(vit_shapes()), tmp_path / 'vit.safetensors')
    said = refused(
        capsys, 'timm_vit', tmp_path / 'vit.safetensors', tmp_path / 'vit.pth', '--base', tmp_path / 'out.pth'
    )
    assert said == 'Error: --base is for eomt: timm_vit needs none.\n'


def test_bad_input_is_one_sentence_and_writes_nothing(release, tmp_path, capsys):
    out = tmp_path / 'out.pth'
    assert 'none.pth' in refused(capsys, 'timm_vit', tmp_path / 'none.pth', out)
    assert 'none.npz' in refused(capsys, 'augreg_npz', tmp_path / 'none.npz', out)
    assert 'none' in refused(capsys, 'segmenter', tmp_path / 'none', out)
    for source, name in [('timm_vit', 'bad.pth'), ('timm_vit', 'bad.safetensors'), ('augreg_npz', 'bad.npz')]:
        (tmp_path / name).write_bytes(b'not a checkpoint')
        assert name in refused(capsys, source, tmp_path / name, out)
    assert 'out.bin' in refused(capsys, 'segmenter', release, tmp_path / 'out.bin')

    weights, variant_file = release / 'checkpoint.pth', release / 'variant.yml'
    assert 'not a plain timm ViT' in refused(capsys, 'timm_vit', weights, out)
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    assert 'checkpoint.pth' in refused(capsys, 'segmenter', release, out)
    torch.save({'weights': mask_state()}, weights)
    assert "under 'model'" in refused(capsys, 'segmenter', release, out)
    weights.write_bytes(whole)
    variant_file.write_text('net_kwargs: !!python/object/apply:os.getcwd []')
    assert 'variant.yml cannot be read as YAML' in refused(capsys, 'segmenter', release, out)
    variant_file.unlink()
    assert 'variant.yml is not there' in refused(capsys, 'segmenter', release, out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['bad.npz', 'bad.pth', 'bad.safetensors', 'seg_tiny_mask']


def test_arrays_that_carry_code_are_refused(tmp_path, capsys):
    np.savez(tmp_path / 'vit.npz', **{'cls': np.array([{}], dtype=object)})
    assert 'plain arrays' in refused(capsys, 'augreg_npz', tmp_path / 'vit.npz', tmp_path / 'out.pth')


def test_the_original_is_never_overwritten(tmp_path, capsys):
    path = tmp_path / 'vit.pth'
    torch.save(draw(vit_shapes()), path)
    before = path.read_bytes()
    assert 'OUT is IN' in refused(capsys, 'timm_vit', path, path)
    assert path.read_bytes() == before


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_a_failed_write_keeps_the_earlier_file(suffix, tmp_path, monkeypatch, capsys):
    path, out = tmp_path / 'vit.pth', tmp_path / f'out{suffix}'
    torch.save(draw(vit_shapes()), path)
    out.write_text('earlier')

    def full(*args, **kwargs):
        Path(args[1]).write_text('half')
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('torch.save', full)
    monkeypatch.setattr('safetensors.torch.save_file', full)
    assert 'No space left' in refused(capsys, 'timm_vit', path, out)
    assert out.read_text() == 'earlier'
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([path.name, out.name])


def test_an_unknown_source_lists_those_that_exist(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit:
        convert('keras', tmp_path / 'a', tmp_path / 'b.pth')
    assert exit.value.code == 2
    assert 'segmenter, timm_vit, augreg_npz' in capsys.readouterr().err.replace("'", '')
