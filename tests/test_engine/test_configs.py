"""Configs that mmtr brings, named 'mmtr::<name>.py', in a checkout. The wheel's are in tests/test_packaging.py."""

import subprocess
import sys
from pathlib import Path

import pytest
from mmengine import hub
from mmengine.config import Config

from mmtr.config.files import load_config, read_reductions
from mmtr.errors import UserError

CONFIGS = Path(__file__).parents[2] / 'configs'
NAME = 'segmenter_tadapter_ade20k.py'


@pytest.fixture
def mine(tmp_path):
    """Function from the value of ``_base_`` to the path of a config with it and one change."""

    def write(base):
        path = tmp_path / 'mine.py'
        path.write_text(f'_base_ = {base}\nmodel = dict(backbone=dict(token_reduction=dict(ratio=0.2)))\n')
        return str(path)

    return write


# In the second, settings of the run are our own too: they must get no scope.
@pytest.mark.parametrize('name', [NAME, 'segmenter_vit_tadapter_demo.py'])
def test_a_config_inherits_from_one_of_ours_as_if_by_its_path(mine, name):
    by_name, as_list, by_import, by_path = (
        Config.fromfile(mine(base)).to_dict()
        for base in (
            f"'mmtr::{name}'",
            f"['mmtr::{name}']",
            f"__import__('mmtr') and 'mmtr::{name}'",
            repr(str(CONFIGS / name)),
        )
    )
    assert by_name == as_list == by_import == by_path
    assert by_name['model']['backbone']['token_reduction']['ratio'] == 0.2


def test_names_of_other_packages_are_found_as_before(mine):
    base = 'mmseg::segmenter/segmenter_vit-b_mask_8xb1-160k_ade20k-512x512.py'
    assert Config.fromfile(mine(repr([base]))).model.backbone.embed_dims == 768
    with pytest.raises(AssertionError, match='mmnothing'):
        Config.fromfile(mine("'mmnothing::segmenter/a.py'"))


def test_tools_and_mmengine_take_the_name():
    expected = Config.fromfile(CONFIGS / NAME).to_dict()
    for read in (load_config, hub.get_config, hub.hub.get_config, Config.fromfile):
        assert read(f'mmtr::{NAME}').to_dict() == expected
    assert list(read_reductions('mmtr::reductions/demo.py')) == list(read_reductions(CONFIGS / 'reductions/demo.py'))


@pytest.mark.slow
def test_a_tool_of_others_that_has_not_imported_mmtr_reads_it_with_an_import(mine):
    path = mine(f"__import__('mmtr') and 'mmtr::{NAME}'")
    code = f'from mmengine.config import Config; print(Config.fromfile({path!r}).model.backbone.token_reduction.ratio)'
    assert subprocess.run([sys.executable, '-c', code], check=True, capture_output=True, text=True).stdout == '0.2\n'


def test_what_is_not_there_is_said(mine):
    with pytest.raises(UserError, match="of 'json', which is neither mmtr nor a library whose configs mmengine finds"):
        load_config('json::a.py')
    with pytest.raises(UserError, match="of 'mmrazor', which is not installed"):
        load_config('mmrazor::a/b.py')
    with pytest.raises(UserError, match="of '', which is not installed"):
        load_config('::a.py')
    with pytest.raises(UserError, match="^Config 'mmtr::no.py' is not there: mmtr has those of '.*configs'.$"):
        load_config('mmtr::no.py')
    with pytest.raises(UserError, match=r'mine.py.* is not there, or a base of it: .*configs/no\.py'):
        load_config(mine("'mmtr::no.py'"))
    with pytest.raises(UserError, match='pretrained=True, but no weights'):
        hub.get_config(f'mmtr::{NAME}', pretrained=True)
