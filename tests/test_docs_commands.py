"""Every line of shell and every block of Python in README and docs, on tiny stand-ins: it is read, or run if slow."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, VISUALIZERS, DefaultScope
from packaging.requirements import Requirement

import mmtr
from mmtr.apis import apply_token_reduction
from mmtr.checks.config import check_config
from mmtr.config.files import load_config
from mmtr.inference.model import build_model

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
    ('add_a_method.md', 'every_second_column'): 'tests/test_docs.py::documented_method',
    ('add_a_method.md', 'DropColumns'): 'tests/test_docs.py::documented_method',
    ('predict.md', 'mmpretrain'): 'tests/test_mmpretrain.py::test_a_classifier',
    ('predict.md', 'MMSegInferencer'): 'tests/test_stock_inferencers.py::test_the_documented_lines_run',
    ('predict.md', 'show_result_pyplot'): 'tests/test_stock_inferencers.py::test_the_documented_lines_run',
    ('deploy.md', 'backbone.compile'): 'tests/test_compiled_pages.py::test_what_the_page_says_compiles',
}
#: Pages that a test of their own runs from top to bottom.
OWN_TESTS = {'own_data.md': 'tests/test_own_data.py', 'add_a_host.md': 'tests/test_docs.py'}
#: The config that a fragment, whose page speaks of any, is added to.
BASES = {
    'analysis.md': 'segmenter_vit_demo',
    'maskdino.md': 'maskdino_r50_coco-instance',
    'get_started.md': 'segmenter_vit-t_ade20k',
    'peft.md': 'dinov2-b_dar_duts',
    'token_reduction.md': 'segmenter_vit-l_ade20k',
}
SWIN = 'maskdino_swin-l_coco-instance'
#: Where a tool stops, of what it imports or calls: once configs are read, and once models are built and filled.
STOPS = dict(
    analyze_tokens=('build_model', 'backbone_inputs'),
    benchmark=('build_all', 'measure'),
    compare=('measuring.load', 'compare_on_test_data'),
    deploy_model=('build_model', 'difference'),
    export=('build_model', 'export.export_onnx'),
    model_zoo=('Zoo', 'Zoo'),
    predict=('build_model', 'build_inferencer'),
    test=('launch.runner', 'launch.runner'),
    train=('launch.runner', 'launch.runner'),
    tune_reduction=('measuring.load', 'open_study'),
    update_benchmarks=('refresh', 'refresh'),
)
#: How far a line goes: its configs are read, its models are built, it is run.
READ, BUILD, RUN = range(3)
#: The page measures for hours; and tools whose own tests run them as pages do, for long.
NOT_RUN = ('benchmarks.md',)
TOOLS_NOT_RUN = ('export', 'tune_reduction', 'benchmark', 'model_zoo', 'update_benchmarks')
#: The one page on which a slow tool is run; on others its models are built.
RUN_ON = dict(analyze_tokens='analysis.md', compare='get_started.md', predict='predict.md')
#: Words that no function of bash can have as its name.
RESERVED = set('for in do done while if then else fi case esac function select time until coproc'.split())
#: What a run is told besides, to take less time.
LESS = dict(analyze_tokens=['--num-images', '1', '--repeats', '1'], compare=['--num-images', '1'])


class Built(BaseException):
    """A tool came as far as it should."""


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
    block = re.sub(r'\bCHECKPOINT\b', 'ckpt.pth', block)
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
        if _kind is not None:
            _kind.append(pytest.param(_page, _block, id=f'{_page.name}-{_number}'))


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    """Drawn data of each kind, and scenes of the demo."""
    stand_ins = StandIns(tmp_path_factory.mktemp('data'))
    stand_ins.scenes = tmp_path_factory.mktemp('scenes')
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / 'demo'))
        draw = module_of(ROOT / 'demo/draw_scenes.py').write_scene
    for split, number in (('training', 0), ('validation', 1)):
        for kind in ('images', 'annotations'):
            (stand_ins.scenes / kind / split).mkdir(parents=True)
        for i in range(2):
            draw(stand_ins.scenes, (split, number, i, 0))
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


def module_of(path):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def runner(cfg, loaders, folders=()):
    """In place of that of ``mmtr.cli.launch``: all that a run is made of, but no run."""
    check_config(cfg, loaders)
    model = build_model(cfg)
    build_hooks(cfg)
    if cfg.get('optim_wrapper'):
        build_optim_wrapper(model, cfg.optim_wrapper)
    raise Built


def build_hooks(cfg):
    """The custom hooks and the visualizer of a config."""
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmseg'):
        for hook in cfg.get('custom_hooks') or ():
            HOOKS.build(dict(hook))
        if cfg.get('visualizer'):
            VISUALIZERS.build({**cfg.visualizer, 'name': f'of_{id(cfg)}', 'save_dir': 'visualized'})


def built(*args, **kwargs):
    """In place of a function that would take long."""
    raise Built


class Commands:
    """The commands that a page may have: a method for each first word, with how far it goes."""

    def __init__(self, monkeypatch, page):
        self.monkeypatch, self.page = monkeypatch, page

    def __call__(self, words, far):
        first = Path(words[0]).name
        method = {'python3.9': 'python'}.get(first, first.replace('.sh', ''))
        assert hasattr(self, method), f'no test knows the command {words[0]}: say in tests/test_docs_commands.py how'
        getattr(self, method)(words, far)

    def python(self, words, far):
        script, *args = words[1:]
        if script == '-W':
            exec(args[args.index('-c') + 1], {})
        elif script == '-m' and args[0] in ('mmtr', 'pytest', 'venv'):
            getattr(self, f'm_{args[0]}')(args[1:], far)
        elif script.startswith('experiments/'):
            check_imports(Path(script).read_text())
        elif script == 'demo/draw_scenes.py':  # tests/test_demo draws some
            self.monkeypatch.syspath_prepend(str(ROOT / 'demo'))
            self.tool(ROOT / script, ['--out', 'drawn', *args], 'tempfile.mkdtemp')
        elif script == 'demo/run.py':  # as tests/test_demo does
            self.tool(ROOT / script, args, 'subprocess.run')
        else:
            assert script.startswith('tools/'), script
            self.m_mmtr([Path(script).stem, *args], far)

    def m_mmtr(self, args, far):
        name, *args = args
        if name in TOOLS_NOT_RUN or RUN_ON.get(name, self.page.name) != self.page.name:
            far = min(far, BUILD)
        stop = STOPS.get(name, (None, None, None))[far] if far < RUN else None
        if name == 'convert_checkpoint':
            self.monkeypatch.syspath_prepend(str(ROOT / 'tests/test_converters'))
            importlib.import_module('releases').write(args[args.index('--source') + 1], Path(args[-2]))
        else:
            # What is only read does not look into its checkpoint, nor does a training or test that does not start.
            write_checkpoints(args, empty=far == READ or stop == 'launch.runner')
        stopped = runner if far == BUILD and stop == 'launch.runner' else built
        self.tool(ROOT / f'tools/{name}.py', [*args, *LESS.get(name, [])], stop, stopped)

    def tool(self, path, args, stop, stopped=built):
        module = module_of(path)
        with self.monkeypatch.context() as patch:
            patch.setattr(sys, 'argv', [str(path), *args])
            if stop:
                holder, _, name = stop.rpartition('.')
                patch.setattr(getattr(module, holder) if holder else module, name, stopped)
            try:
                module.main()
                assert not stop, f'{path.name} did not get to {stop}'
            except Built:
                pass
            except SystemExit as status:
                assert not status.code, f'exit status {status.code} of {path.name} {" ".join(args)}'

    def m_pytest(self, args, far):
        for path in [arg for arg in args if arg.startswith('tests/')]:
            assert (ROOT / path).exists(), path
            if '-k' in args and path.endswith('.py'):
                assert args[args.index('-k') + 1] in (ROOT / path).read_text()

    def m_venv(self, args, far):
        """There is nothing of ours in it."""

    def pip(self, words, far):
        assert words[1] in ('install', 'wheel')
        for option, word in zip(words[1:], words[2:]):
            if option == '-r':
                assert (ROOT / word).is_file(), word
            elif option in ('-e', '-w', '.') or word.startswith('-') or word == '.':
                assert (ROOT / 'setup.py').is_file()
            elif not word.startswith('dist/'):
                Requirement(word)

    def make(self, words, far):
        for target in words[1:]:
            assert re.search(rf'^{target}:', (ROOT / 'Makefile').read_text(), re.M), target

    def git(self, words, far):
        assert words[1] == 'clone'

    def cd(self, words, far):
        """Into the clone."""

    def mkdir(self, words, far):
        Path(words[-1]).mkdir(parents=True, exist_ok=True)

    def measure(self, words, far):
        """It makes what docs/benchmarks.md shows: see that page's commands."""
        subprocess.run(['bash', '-n', ROOT / words[0]], check=True)

    def torchrun(self, words, far):
        self.python(['python', *words[words.index('-m') :]], min(far, BUILD))

    def mim(self, words, far):
        """tests/test_packaging.py looks at what mim finds in a wheel."""
        package, *args = words[2:]
        assert package in ('mmtr', f'mmtr=={mmtr.__version__}')
        if words[1] == 'run':
            self.m_mmtr(args, min(far, BUILD))
        elif words[1] in ('train', 'test'):
            gpus = args.index('--gpus') if '--gpus' in args else len(args)
            args[0] = args[0] if args[0] == 'mine.py' else f'configs/{args[0]}'  # where mim finds it
            self.m_mmtr([words[1], *[arg for arg in args[:gpus] if arg != '-C']], min(far, BUILD))
        else:
            assert words[1] == 'search'

    def dist_train(self, words, far):
        """What the script would start, once."""
        Path('bin').mkdir(exist_ok=True)
        Path('bin/srun').write_text('#!/bin/sh\necho "$@"\n')
        Path('bin/srun').chmod(0o755)
        env = {**os.environ, 'PYTHON': 'echo', 'PATH': f'bin:{os.environ["PATH"]}'}
        started = subprocess.run(['bash', *words], check=True, env=env, capture_output=True, text=True).stdout.split()
        tool = next(i for i, word in enumerate(started) if word.endswith(('/train.py', '/test.py')))
        self.m_mmtr([Path(started[tool]).stem, *started[tool + 1 :]], min(far, BUILD))

    dist_test = slurm_train = slurm_test = dist_train


def check_imports(text):
    """Whether all that a script imports is there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            absent = [each.name for each in node.names if not hasattr(module, each.name)]
            assert not absent, f'{node.module} has no {absent}'
        elif isinstance(node, ast.Import):
            for each in node.names:
                importlib.import_module(each.name)


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
