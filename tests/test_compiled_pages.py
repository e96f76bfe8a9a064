"""What docs/deploy.md says of torch.compile, counted in graphs."""

import functools
import re
from pathlib import Path

import cv2
import mmseg.apis
import numpy as np
import pytest
import torch
from mmseg.apis import inference_model

import mmtr

ROOT = Path(__file__).parents[1]
SECTION = (ROOT / 'docs/deploy.md').read_text().split('## torch.compile')[1]


@pytest.fixture
def graphs(tmp_path, monkeypatch):
    """The graphs that are compiled from now on, by a backend that counts and runs them and needs no compiler."""
    if not torch._dynamo.is_dynamo_supported():
        pytest.skip(f'torch {torch.__version__} compiles nothing in this Python')
    for name in ('configs', 'demo'):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    cv2.imwrite('photo.jpg', np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8))
    found = []

    def count(graph, inputs):
        found.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, 'compile', functools.partial(torch.compile, backend=count))
    torch._dynamo.reset()
    yield found
    torch._dynamo.reset()


@pytest.fixture
def model(monkeypatch):
    """The page's of two layers, not compiled."""
    small = mmtr.init_model(
        str(ROOT / 'configs/segmenter_vit_tadapter_demo.py'),
        None,
        'cpu',
        {'model.backbone.num_layers': 2, 'model.backbone.token_reduction.layers': (0, 2)},
    )
    monkeypatch.setattr(mmseg.apis, 'init_model', lambda *args, **kwargs: small)
    return small


def labels(model):
    return inference_model(model, 'photo.jpg').pred_sem_seg.data[0].numpy()


@pytest.mark.slow
def test_what_the_page_says_compiles(graphs, model):
    plain = labels(model)
    (block,) = re.findall(r'```python\n(.*?)```', SECTION, re.S)
    if not hasattr(torch.nn.Module, 'compile'):
        pytest.skip('Module.compile needs torch 2.2')
    exec(block, names := {})
    assert len(graphs) == 1
    assert np.array_equal(names['sample'].pred_sem_seg.data[0].numpy(), plain)
    labels(names['model'])
    assert len(graphs) == 1


@pytest.mark.slow
def test_what_the_page_says_of_torch_2_1_compiles(graphs, model):
    plain = labels(model)
    (line,) = re.findall(r'`(model\.backbone\.forward = torch\.compile\(.*?\))`', SECTION)
    exec(line, dict(torch=torch, model=model))
    assert np.array_equal(labels(model), plain)
    assert len(graphs) == 1


def test_the_whole_model_would_compile_nothing(graphs, model):
    (line,) = re.findall(r'`(model = torch\.compile\(model\))` would compile nothing', SECTION)
    exec(line, names := dict(torch=torch, model=model))
    labels(names['model'])
    assert graphs == []
