"""A Segmenter whose backbone is frozen but for a branch."""

import pytest

from .tuned_runs import DAR, base_file


@pytest.fixture
def tuned(tiny_segmenter, tmp_path):
    """Config of a Segmenter whose backbone is frozen but for a DAR branch, and reduced by DAR."""
    cfg = tiny_segmenter
    cfg.model.type = 'mmtr.EncoderDecoder'
    cfg.model.backbone.update(
        type='mmtr.VisionTransformer',
        peft=DAR,
        token_reduction=dict(type='DAR'),
        init_cfg=dict(type='Pretrained', checkpoint=base_file(tmp_path / 'base.pth')),
    )
    cfg.custom_hooks = [dict(type='mmtr.PEFTCheckpointHook')]
    return cfg


@pytest.fixture
def config(tuned, tmp_path):
    """Path of the config file of ``tuned``, without what the tools add by themselves."""
    tuned.custom_hooks = []
    tuned.dump(str(tmp_path / 'tuned.py'))
    return tmp_path / 'tuned.py'
