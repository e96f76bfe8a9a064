"""The commands that a page may have, and how far each goes in a test."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from operator import attrgetter
from pathlib import Path

from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, VISUALIZERS, DefaultScope
from packaging.requirements import Requirement

import mmtr
from mmtr.checks.config import check_config
from mmtr.inference.model import build_model

from .stand_ins import ROOT, write_checkpoints

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
#: The same with --sweep.
SWEEP_STOPS = dict(STOPS, benchmark=('build_all', 'write_sweep'), tune_reduction=('measuring.load', 'predictor'))
#: How far a line goes: its configs are read, its models are built, it is run.
READ, BUILD, RUN = range(3)
TOOLS_NOT_RUN = ('export', 'tune_reduction', 'benchmark', 'model_zoo', 'update_benchmarks')
#: The one page on which a slow tool is run; on others its models are built.
RUN_ON = dict(analyze_tokens='analysis.md', compare='get_started.md', predict='predict.md')
#: What a run is told besides, to take less time.
LESS = dict(analyze_tokens=['--num-images', '1', '--repeats', '1'], compare=['--num-images', '1'])


class Built(BaseException):
    """A tool came as far as it should."""


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
        assert hasattr(self, method), f'no test knows the command {words[0]}: say in tests/documented_commands.py how'
        getattr(self, method)(words, far)

    def python(self, words, far):
        script, *args = words[1:]
        if script == '-W':
            exec(args[args.index('-c') + 1], {})
        elif script == '-m' and args[0] in ('mmtr', 'pytest', 'venv'):
            getattr(self, f'm_{args[0]}')(args[1:], far)
        elif script.startswith('experiments/'):
            check_imports(Path(script).read_text())
        elif script in ('demo/draw_scenes.py', 'demo/draw_shapes.py'):  # tests/test_demo draws some
            self.monkeypatch.syspath_prepend(str(ROOT / 'demo'))
            self.tool(ROOT / script, ['--out', 'drawn', *args], 'drawing.tempfile.mkdtemp')
        elif script == 'demo/run.py':  # as tests/test_demo does
            self.tool(ROOT / script, args, 'subprocess.run')
        else:
            assert script.startswith('tools/'), script
            self.m_mmtr([Path(script).stem, *args], far)

    def m_mmtr(self, args, far):
        name, *args = args
        if name in TOOLS_NOT_RUN or RUN_ON.get(name, self.page.name) != self.page.name:
            far = min(far, BUILD)
        stops = SWEEP_STOPS if '--sweep' in args else STOPS
        stop = stops.get(name, (None, None, None))[far] if far < RUN else None
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
                patch.setattr(attrgetter(holder)(module) if holder else module, name, stopped)
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
        """It makes what the pages show: see the commands there."""
        subprocess.run(['bash', '-n', ROOT / words[0]], check=True)

    gpu = healing = measure

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
