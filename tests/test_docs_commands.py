"""Every line of shell and every block of Python in README and docs, on tiny stand-ins: it is read, or run if slow."""

import ast
import re
import subprocess
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config

from mmtr.apis import apply_token_reduction
from mmtr.config.files import load_config
from mmtr.inference.model import build_model

from .documented_commands import BUILD, READ, RUN, Commands, build_hooks, check_imports, module_of
from .stand_ins import ROOT, StandIns, shrink, write_checkpoints

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
#: Words of the pages that stand for something: in the order of replacement.
PLACEHOLDERS = {
    r'<this repository>': 'https://github.com/none/mmtr',
    r'\[options\]': '--amp',
    r'IMAGE\|FOLDER\|VIDEO|FILES\|FOLDER|\bPATH \.\.\.|\bFOLDER\b': 'images',
    r'KEY=VALUE \.\.\.': 'randomness.seed=1',
    r'\bH W\b': '64 64',
    r'\bDIR\b': 'dir',
    r'\bFILE\.py\b': 'configs/reductions/demo.py',
    r'\bPLAIN_CONFIG CHECKPOINT\b': 'configs/segmenter_vit_demo.py demo/segmenter_vit_demo.pth',
    r'\bGPUS\b': '2',
    r'\[(--[^\]]*)\]': r'\1',  # what is optional is given
}
#: What CONFIG is where the page is about models of a kind.
CONFIGS = {'peft.md': 'configs/dinov2-b_dar-distill_duts.py'}
#: (page, a word of the block): the test that runs it, which reads the page too.
ELSEWHERE = {
    ('predict.md', 'mmpretrain'): 'tests/test_mmpretrain.py::test_a_classifier',
    ('predict.md', 'MMSegInferencer'): 'tests/test_stock_inferencers.py::test_the_documented_lines_run',
    ('predict.md', 'show_result_pyplot'): 'tests/test_stock_inferencers.py::test_the_documented_lines_run',
    ('deploy.md', 'backbone.compile'): 'tests/test_compiled_pages.py::test_what_the_page_says_compiles',
}
#: Pages that a test of their own runs from top to bottom.
OWN_TESTS = {
    'own_data.md': 'tests/test_own_data.py',
    'add_a_host.md': 'tests/test_docs.py',
    'add_a_method.md': 'tests/test_docs.py',
    'classification.md': 'tests/with_mmpretrain/test_page.py',
}
#: The config that a fragment, whose page speaks of any, is added to.
BASES = {
    'analysis.md': 'segmenter_vit_demo',
    'eomt.md': 'eomt_dinov2-l_coco-panoptic-640',
    'maskdino.md': 'maskdino_r50_coco-instance',
    'get_started.md': 'segmenter_vit-t_ade20k',
    'healing.md': 'segmenter_vit-t_camvid',
    'peft.md': 'dinov2-b_dar_duts',
    'token_reduction.md': 'segmenter_vit-l_ade20k',
}
SWIN = 'maskdino_swin-l_coco-instance'
#: The page measures for hours; and tools whose own tests run them as pages do, for long.
NOT_RUN = ('benchmarks.md',)
#: Words that no function of bash can have as its name.
RESERVED = set('for in do done while if then else fi case esac function select time until coproc'.split())


def blocks_of(page):
    """Line number, language and text of each fenced block."""
    for match in re.finditer(r'^( *)```(\w*)\n(.*?)^ *```$', page.read_text(), re.M | re.S):  # novm
        number = page.read_text()[: match.start()].count('\n') + 1
        yield number, match[2], textwrap.dedent(match[3])


def commands(block, page):
    """(PYTHONPATH, words) of each command of a block of shell, as bash takes it apart."""
    earlier = '\n'.join(shell for _, language, shell in blocks_of(page) if language == '').partition(block)[0]
    # Variables that earlier blocks of the page have set.
    block = '\n'.join(re.findall(r'^[A-Z]+="[^"]*"$', earlier, re.M)) + f'\n{block}'
    block = re.sub(r'\n +\[', ' [', block)
    for word, meant in PLACEHOLDERS.items():
        block = re.sub(word, meant, block)
    block = re.sub(r'\bCONFIG\b', CONFIGS.get(page.name, 'configs/segmenter_vit-t_tadapter_ade20k.py'), block)
    block = re.sub(r'\bCHECKPOINT\b(?!=)', 'ckpt.pth', block)
    # No command is found, so that bash gives each to a function; those with a slash must be functions themselves.
    names = set(re.findall(r'(?<![\w./=:-])(?:[\w.-]+/)+[\w.-]+|^[\w.]+|\w+', block, re.M)) - RESERVED
    functions = '\n'.join(
        f'function {name} {{ record {name} "$@"; }}'
        for name in sorted(names)
        if not name[0].isdigit() and name not in ('record', 'printf')
    )
    script = f'record() {{ printf "%s\\0" "${{PYTHONPATH-}}" "$@"; printf "\\1"; }}\n{functions}\n{block}'
    done = subprocess.run(['/bin/bash', '--norc', '-c', script], env=dict(PATH=''), capture_output=True, text=True)
    assert done.stderr == '', f'{page.name}: {done.stderr}'
    for record in done.stdout.split('\1')[:-1]:
        path, *words = record.split('\0')[:-1]
        yield path, words


SHELL, PYTHON = [], []


for _page in PAGES:
    if _page.name in OWN_TESTS:
        assert f'docs/{_page.name}' in (ROOT / OWN_TESTS[_page.name]).read_text()
        continue
    for _number, _language, _block in blocks_of(_page):
        _kind = {'': SHELL, 'bash': SHELL, 'python': PYTHON}.get(_language)
        # tests/with_mmpretrain/test_page.py has the commands on mmpretrain's configs.
        if _kind is not None and 'mmpretrain::' not in _block or _kind is PYTHON:
            _kind.append(pytest.param(_page, _block, id=f'{_page.name}-{_number}'))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Drawn data of each kind, and scenes of the demo."""
    stand_ins = StandIns(tmp_path_factory.mktemp('data'))
    stand_ins.scenes = tmp_path_factory.mktemp('scenes')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'demo'))
        scenes = module_of(ROOT / 'demo/draw_scenes.py')
    for split, number in (('training', 0), ('validation', 1)):
        for folder in scenes.folders(split):
            (stand_ins.scenes / folder).mkdir(parents=True)
        for i in range(2):
            scenes.write_scene(stand_ins.scenes, (split, number, i, 0))
    return stand_ins


@pytest.fixture
def workplace(tmp_path, monkeypatch, data):
    """What looks like a checkout with data, into which commands may write; configs are read small."""
    for folder in ('configs', 'tools', 'demo', 'docs', 'docs/results', 'experiments', 'requirements'):
        (tmp_path / folder).mkdir()
        for path in (ROOT / folder).iterdir():
            if path.suffix != '.json' and path.name not in ('data', 'results', 'output'):
                (tmp_path / folder / path.name).symlink_to(path)
    (tmp_path / 'setup.py').symlink_to(ROOT / 'setup.py')
    (tmp_path / 'demo/data').mkdir()
    (tmp_path / 'demo/data/scenes').symlink_to(data.scenes)
    (tmp_path / 'data/dsb2018_nuclei').mkdir(parents=True)
    (tmp_path / 'data/dsb2018_nuclei/annotations').mkdir()
    for split in ('train', 'val'):
        (tmp_path / f'data/dsb2018_nuclei/annotations/instances_{split}.json').symlink_to(
            data.coco(['nucleus'], ['a', 'b']) / 'instances.json'
        )
    (tmp_path / 'images').mkdir()
    for name in ('photo.jpg', 'images/a.jpg', 'images/b.jpg'):
        cv2.imwrite(str(tmp_path / name), np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8))
    (tmp_path / 'mine.py').write_text("_base_ = 'mmtr::segmenter_vit-t_tadapter_ade20k.py'\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('TORCH_FORCE_WEIGHTS_ONLY_LOAD', '1')  # which the tools set for good
    read = Config.fromfile
    monkeypatch.setattr(Config, 'fromfile', staticmethod(lambda *args, **kwargs: shrink(read(*args, **kwargs), data)))
    return tmp_path


@pytest.mark.parametrize('page, block', SHELL)
def test_lines_of_shell(page, block, workplace, monkeypatch):
    follow(page, block, monkeypatch, READ if page.name in NOT_RUN else BUILD)


@pytest.mark.slow
@pytest.mark.parametrize('page, block', SHELL)
def test_lines_of_shell_run(page, block, workplace, monkeypatch):
    follow(page, block, monkeypatch, BUILD if page.name in NOT_RUN else RUN)


def follow(page, block, monkeypatch, far):
    """Do what a block of shell says."""
    known, found = Commands(monkeypatch, page), list(commands(block, page))
    assert found, 'no command: label the block with what it is, text for an output'
    for path, words in found:
        print(*words)
        with monkeypatch.context() as patch:
            for folder in filter(None, path.split(':')):
                patch.syspath_prepend(str(ROOT / folder))
            known(words, far)


def is_config(block):
    """Whether a block does nothing but give keys of a config their values."""
    body = ast.parse(block).body
    keys = {'_base_', 'model', 'custom_hooks', 'visualizer'}
    return all(
        isinstance(node, ast.ImportFrom)
        or isinstance(node, ast.Assign)
        and {target.id for target in node.targets} <= keys
        for node in body
    )


@pytest.mark.parametrize('page, block', PYTHON)
def test_blocks_of_python(page, block, workplace, run=False):
    for (name, word), test in ELSEWHERE.items():
        if name == page.name and word in block:
            path, function = test.split('::')
            text = (ROOT / path).read_text()
            assert f'def {function}(' in text and name in text
            return
    if not is_config(block):
        check_imports(block)
        if run:
            model = build_model(load_config('configs/segmenter_vit-t_ade20k.py'))
            Path('maskdino.pth').exists() or write_checkpoints([*re.findall(r"'([^']+\.(?:py|pth))'", block)])
            exec(block, dict(model=model))
        return
    if '_base_' not in block:
        base = SWIN if 'Swin' in block else BASES[page.name]
        if ast.parse(block).body[0].__class__ is ast.ImportFrom:  # of pure Python, which inherits by an import
            Path('configs/base_.py').write_text(load_config(f'configs/{base}.py').pretty_text)
            block = f'from mmengine.config import read_base\nwith read_base():\n    from .base_ import *\n{block}'
        else:
            block = f"_base_ = './{base}.py'\n{block}"
    Path('configs/block_.py').write_text(block)
    cfg = load_config('configs/block_.py')
    model = build_model(cfg)
    build_hooks(cfg)
    if 'token_reduction' in block:
        size = cfg.model.data_preprocessor.get('size') or (256, 256)
        own = build_model(cfg).backbone
        assert own.token_reducer.trained or own.token_schedule(tuple(size)) != (
            apply_token_reduction(model, None).backbone.token_schedule(tuple(size))
        )


@pytest.mark.slow
@pytest.mark.parametrize('page, block', [case for case in PYTHON if not is_config(case.values[1])])
def test_blocks_of_python_run(page, block, workplace):
    test_blocks_of_python(page, block, workplace, run=True)
