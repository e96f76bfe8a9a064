import inspect
import re
import runpy
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from mmtr import UserError
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.registry import MODELS, PEFTS, TOKEN_REDUCERS

from .test_models import test_attention_contract as attention_contract
from .test_reducers import test_contract as contract
from .test_reducers import test_contract_calls as calls

ROOT = Path(__file__).parents[1]
TOKEN_REDUCERS.import_from_location()
PEFTS.import_from_location()
METHODS = [('token_reduction.md', TOKEN_REDUCERS, name) for name in sorted(TOKEN_REDUCERS.module_dict)]
METHODS += [('peft.md', PEFTS, name) for name in sorted(PEFTS.module_dict)]
PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]
#: What a host and a method that are new are tested for.
ON_EVERY_HOST = (
    contract.test_prefix_tokens_are_never_reduced,
    contract.test_an_image_does_not_depend_on_its_batch,
    contract.test_nothing_to_reduce_is_the_plain_model,
    calls.test_token_schedule_is_what_the_layers_see,
    calls.test_checkpointing_changes_no_gradient,
)


@pytest.fixture
def documented_method(monkeypatch):
    """The method that docs/add_a_method.md adds, registered for one test."""
    arithmetic, reducer, config_text = re.findall(
        r'```python\n(.*?)```', (ROOT / 'docs/add_a_method.md').read_text(), re.S
    )
    columns = ModuleType('mmtr.ops.columns')
    exec(arithmetic, vars(columns))
    monkeypatch.setitem(sys.modules, columns.__name__, columns)
    exec(reducer, dict(__package__='mmtr.reducers'))
    exec(config_text, config := {})
    try:
        yield config['model']['backbone']['token_reduction']
    finally:
        TOKEN_REDUCERS._module_dict.pop('DropColumns')


def test_the_documented_method_keeps_every_promise(documented_method):
    assert build_token_reducer(documented_method, BackboneInfo(24, 64, 1)).token_schedule((4, 5), 24) == (
        [20] * 10 + [12] * 14
    )
    with pytest.raises(UserError, match='token_reduction.start=24 must be a whole number from 0 to 23, or None'):
        build_token_reducer(dict(documented_method, start=24), BackboneInfo(24, 64, 1))
    cfg = dict(type='DropColumns')
    for depth in (2, 4):
        calls.test_whatever_a_search_draws_works('DropColumns', depth)
    for backbone in contract.BACKBONES:
        contract.test_heads_receive_the_full_grid(cfg, backbone, 57, 130, 16, False)
    for check in (
        *ON_EVERY_HOST,
        contract.test_positions_are_in_raster_order,
        calls.test_no_state_is_left_on_the_module,
        calls.test_two_threads_share_a_model,
    ):
        for backbone in contract.BACKBONES:
            check(cfg, backbone)


@pytest.mark.slow
def test_the_documented_method_compiles(documented_method):
    for backbone in contract.BACKBONES:
        calls.test_compiles_without_a_graph_break(dict(type='DropColumns'), backbone)


@pytest.fixture
def documented_host(monkeypatch):
    """Function that builds the host that docs/add_a_host.md adds, in small; it is registered for one test."""
    names = {}
    for block in re.findall(r'```python\n(.*?)```', (ROOT / 'docs/add_a_host.md').read_text(), re.S):
        exec(block, names)

    def build(cfg, patch_size=16, with_cls_token=True, **kwargs):
        torch.manual_seed(0)
        small = dict(img_size=(64, 96), embed_dims=32, num_layers=4, num_heads=4, out_indices=(1, 3))
        more = dict(patch_size=patch_size, with_cls_token=with_cls_token, token_reduction=cfg)
        return contract.filled(MODELS.build(dict(type='mmtr.SinCosViT', **small, **more, **kwargs)))

    yield build
    MODELS._module_dict.pop('SinCosViT')


@pytest.mark.parametrize('name', sorted(TOKEN_REDUCERS.module_dict))
def test_every_method_works_on_the_documented_host(documented_host, name):
    cfg = dict(type=name)
    contract.test_heads_receive_the_full_grid(cfg, documented_host, 57, 130, 16, True)
    for check in ON_EVERY_HOST:
        check(cfg, documented_host)


def test_the_documented_host_keeps_the_attention_contract(documented_host):
    for check in (
        attention_contract.test_a_branch_is_its_parts,
        attention_contract.test_a_bias_joins_in,
        attention_contract.test_fewer_tokens_stand_where_they_stood,
    ):
        check(documented_host)
    model = documented_host(None, peft=dict(type='LoRA', targets='.*'))
    assert {name for layer in model.peft.layers for name in layer} == {'qkv', 'proj', 'fc1', 'fc2'}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r'\]\((?!https?:)([^)#]+)', page.read_text()):
        assert (page.parent / target).exists(), target


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_named_files_exist(page):
    pattern = r'(?:configs|tools|demo|docs|experiments|requirements)/[\w./-]+\.(?:py|sh|md|txt|pth)'
    for name in re.findall(pattern, page.read_text()):
        assert (ROOT / name).exists() or 'add_a_method' in page.name, name


@pytest.mark.parametrize('page, registry, method', METHODS)
def test_every_option_is_documented_with_its_default(page, registry, method):
    sections = (ROOT / 'docs' / page).read_text().split('\n## ')
    section = next(part for part in sections if part.startswith(f'{method}\n'))
    options = {name: p for name, p in inspect.signature(registry.get(method)).parameters.items() if name != 'backbone'}
    rows = re.findall(r'^\| `(\w+)` \| `(.*?)` \| (.+?) \| (.+) \|$', section, re.M)
    assert {name: default for name, default, *_ in rows} == {name: repr(p.default) for name, p in options.items()}


def test_option_tables_are_those_of_the_declarations():
    tables = runpy.run_path(str(ROOT / 'docs/options.py'))
    for page, registry in tables['PAGES'].items():
        text = (ROOT / 'docs' / page).read_text()
        assert tables['written'](text, registry) == text, 'python docs/options.py writes them'
        changed = text.replace(' | one of ', ' | all of ')
        assert changed != text and tables['written'](changed, registry) == text
