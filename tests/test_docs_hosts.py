"""docs/hosts.md against the packaged configs: what it says works does, in one config of each folder and backbone."""

import re
import runpy

import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mmtr import UserError, apply_token_reduction
from mmtr.registry import MODELS
from tests.conftest import TOOLS

hosts = runpy.run_path(str(TOOLS.parent / 'docs/hosts.py'))
PAGE = hosts['PAGE'].read_text(encoding='utf-8')
ROW = re.compile(r'\| `(\w+)` \| (\d+) \| ([^|]+) \| ([^|]+) \|\n')
#: Keys by which stock backbones count their layers, and a few in place of many.
FEWER = dict(num_layers=2, depths=1)


def rows(library):
    return ROW.findall(PAGE.split(f'\n## {library}\n')[1].split('\n## ')[0])


def first_backbone(cfg):
    if isinstance(cfg, dict):
        for key, value in cfg.items():
            if key in hosts['KEYS'] and isinstance(value, dict):
                return value
            if first_backbone(value):
                return first_backbone(value)


def smaller(cfg):
    """The config of a backbone with few layers and without a checkpoint."""
    cfg = {key: value for key, value in cfg.items() if key not in ('init_cfg', 'pretrained')}
    for key, few in FEWER.items():
        if isinstance(cfg.get(key), (list, tuple)):
            cfg[key] = [few + 1] * len(cfg[key])
        elif key in cfg:
            cfg[key] = few
    if isinstance(cfg.get('out_indices'), (list, tuple)) and isinstance(cfg.get('num_layers'), int):
        cfg['out_indices'] = (cfg['num_layers'] - 1,)
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize('library', ['mmseg', 'mmdet'])
def test_the_page_is_what_the_configs_say(library):
    assert hosts['table'](library).strip() in PAGE


@pytest.mark.slow
@pytest.mark.parametrize('library', ['mmseg', 'mmdet'])
def test_one_config_of_each_folder_takes_a_reduction(library):
    works = {kind: what.startswith(('all', 'grid')) for kind, _, _, what in rows(library)}
    assert any(works.values())
    for kind, folders in hosts['configs_of'](library).items():
        for folder, paths in folders.items() if kind in works else ():
            cfg = Config.fromfile(paths[0], import_custom_modules=False)
            with DefaultScope.overwrite_default_scope(library):
                backbone = MODELS.build(smaller(first_backbone(cfg.model)))
            if works[kind]:
                reduced = apply_token_reduction(backbone, dict(type='GridPool', ratio=0.5))
                plain = apply_token_reduction(backbone, None)
                counts = [sum(model.token_schedule((512, 512))) for model in (reduced, plain)]
                assert counts[0] <= counts[1], (folder, kind)
            else:
                with pytest.raises(UserError, match=f'cannot be reduced in a {kind} of {library}'):
                    apply_token_reduction(backbone, dict(type='GridPool'))


def test_the_number_of_transformers_of_mmsegmentation():
    assert sum(int(count) for _, count, *_ in rows('mmseg')) == 84
