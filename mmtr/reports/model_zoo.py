"""Write the page of all configs: the counted cost of each model, beside published and measured results."""

import fnmatch
import inspect
import json
import re
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import torch
import yaml
from mmengine.config import Config
from torch import nn

from mmtr.analysis.flops import count_flops, schedule_in_words, token_schedule
from mmtr.analysis.shapes import ShapesOnly
from mmtr.analysis.trade_offs import main_metric
from mmtr.config.files import load_config
from mmtr.config.model import model_of
from mmtr.errors import UserError
from mmtr.inference.model import build_model
from mmtr.registry import TOKEN_REDUCERS
from mmtr.words import markdown_rows

from .benchmarks import machine_in_words

COLUMNS = ('config', 'method', 'pixels', 'GFLOPs', 'M params', 'patch tokens by layer', 'published', 'measured here')
#: Indices of the columns of text.
WORDS = (0, 1, 2, 5, 6, 7)
#: Keys of a config that do not change the cost of the deployed model.
_FREE = ('pretrained', 'init_cfg', 'train_cfg', 'test_cfg', 'data_preprocessor', 'loss_decode', 'distillation')


@dataclass(frozen=True)
class Cost:
    """Cost of a model.

    Args:
        gflops: 10^9 multiply-adds of one image; None if they depend on the image.
        parameters: Number of parameters of the deployed model.
        trained: Number of those that are trained.
        schedule: Patch tokens of each layer; None for a backbone without a reducer.
    """

    gflops: Optional[float]
    parameters: int
    trained: int
    schedule: Optional[list[int]]


class _DenseParts(nn.Module):
    """A detector up to its proposals, whose number depends on the image."""

    def __init__(self, detector):
        super().__init__()
        self.detector = detector

    def forward(self, images):
        return self.detector.rpn_head(self.detector.extract_feat(images))


def read_notes(path: Path, names: list[str]) -> dict:
    """Read docs/model_zoo.yml and check it against the names of the configs.

    Raises:
        UserError: The file names an unknown config or source, or has a config in no table or in several.
    """
    notes = yaml.safe_load(path.read_text())
    for key in ('published', 'measured'):
        for name in notes[key]:
            if name not in names:
                raise UserError(f"{path}: '{name}' in '{key}' is no config.")
    for name, value in notes['published'].items():
        source = re.search(r'\((\w+)[,)]', value)
        if not source or source[1] not in notes['sources']:
            raise UserError(
                f"{path}: '{value}' of '{name}' names no source: give one of "
                f'{", ".join(notes["sources"])} in parentheses.'
            )
    for name in names:
        titles = [title for title, patterns in notes['tables'].items() if _fits(name, patterns)]
        if len(titles) != 1:
            raise UserError(
                f"{path}: config '{name}' must be in one table, and is in {titles or 'none'}: name it in 'tables'."
            )
    return notes


def _fits(name, patterns):
    return any(fnmatch.fnmatch(name, pattern) for pattern in patterns)


def pixels_of(cfg: Config) -> tuple[int, int]:
    """Return the input size (H, W) of a model in training, in pixels: of crops, padded batches, or ``img_size``."""
    augments = (model_of(cfg).get('data_preprocessor') or {}).get('batch_augments') or []
    padded = [augment.get('size') for augment in augments if isinstance(augment, dict)]  # of mmpretrain, one dict
    size = next(filter(None, (cfg.get('crop_size'), *padded, cfg.model.backbone.get('img_size'))))
    return (size, size) if isinstance(size, int) else tuple(size)


def deployed(cfg: Config) -> Config:
    """Copy a config without the parts of the model that only training needs."""
    cfg = Config(cfg.to_dict())
    reduction = cfg.model.backbone.get('token_reduction')
    if reduction and 'deploy' in inspect.signature(TOKEN_REDUCERS.get(reduction.type)).parameters:
        reduction.deploy = True
    if 'distillation' in cfg.model:
        cfg.model.distillation = None
    return cfg


def cost(cfg: Config, pixels: tuple[int, int]) -> Cost:
    """Count the cost of the deployed model of a config, with random weights, for one image of ``pixels`` (H, W).

    Raises:
        UserError: An operator of the model cannot be counted.
    """
    model = build_model(deployed(cfg))
    reducer = getattr(model.backbone, 'token_reducer', None)
    images = torch.zeros(1, 3, *pixels).normal_(generator=torch.Generator().manual_seed(0))
    gflops = None
    if reducer is None or reducer.fixed_count or reducer.trained:
        with torch.no_grad(), ExitStack() as stack:
            if reducer is not None and not reducer.fixed_count:
                reducer.calibrate(lambda: model.backbone(images))
            else:
                stack.enter_context(ShapesOnly())
            flops = count_flops(_DenseParts(model) if hasattr(model, 'rpn_head') else model, images)
        if flops.unsupported:
            raise UserError(f"Not counted in config '{cfg.filename}': {', '.join(flops.unsupported)}.")
        gflops = flops.total / 1e9
    return Cost(
        gflops,
        sum(p.numel() for p in model.parameters()),
        sum(p.numel() for p in model.parameters() if p.requires_grad),
        token_schedule(model.backbone, pixels),
    )


def _identity(cfg, pixels):
    def without(node):
        if isinstance(node, dict):
            return {key: without(value) for key, value in sorted(node.items()) if key not in _FREE}
        return [without(value) for value in node] if isinstance(node, (list, tuple)) else node

    hooks = [hook for hook in cfg.get('custom_hooks', []) if 'token_reduction' in hook]
    return repr((without(cfg.model.to_dict()), hooks, pixels))


def method_of(cfg: Config) -> str:
    """Name the reduction and the fine-tuning of a config."""
    hooks = [hook.token_reduction for hook in cfg.get('custom_hooks', []) if 'token_reduction' in hook]
    reduction, peft = hooks[0] if hooks else cfg.model.backbone.get('token_reduction'), cfg.model.backbone.get('peft')
    words = [reduction.type] if reduction else []
    words += [f'peft {peft.type}'] if peft else []
    words += ['distilled'] if cfg.model.get('distillation') else []
    return ', '.join(words) or 'plain'


def tokens_in_words(found: Cost) -> str:
    """Format the column of tokens; long schedules are shortened in the middle."""
    if found.gflops is None:
        return 'by image'
    steps = schedule_in_words(found.schedule or []).split(', ')
    return ', '.join(steps if len(steps) <= 6 else [*steps[:2], '...', *steps[-2:]])


def measured_in_words(note: dict, name: str, results: Path) -> tuple[str, str]:
    """Format the result of one recorded run for a config, with a link to its file, and the machine of the run.

    Args:
        note: ``file``, the name in ``results`` without suffix; ``row``, the row of the config, by default ``name``;
            for a run of tools/benchmark.py also ``to``, the row of the model that it is compared with, and
            ``called``, the name of that model in the text.
        name: Name of the config.
        results: Folder of the recorded runs.

    Raises:
        UserError: There is no such run or row.
    """
    try:
        report = json.loads((results / f'{note["file"]}.json').read_text())
        row = note.get('row', name)
        if isinstance(report['results'], dict):  # tools/compare.py
            found, plain = report['results'][row], report['results']['plain']
            metric = main_metric(report['results'])
            words = f'{found["metrics"][metric]:.2f} {metric}'
            if found is not plain:
                words += f', encoder {plain["encoder_ms"] / found["encoder_ms"]:.2f}x'
        else:
            rows = {(r['part'], r['config']): r for r in report['results']}
            words = ', '.join(
                f'{part} {rows[part, note["to"]]["ms_per_image"] / rows[part, row]["ms_per_image"]:.2f}x'
                for part in dict.fromkeys(part for part, _ in rows)
            )
            words += f' of {note["called"]}' if 'called' in note else ''
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"docs/model_zoo.yml: nothing is recorded for '{name}' as {note}: {error!r}.") from error
    return f'[{words}](results/{note["file"]}.json)', machine_in_words(report['machine'])


class Zoo:
    """Tables of all configs of a repository.

    Args:
        root: Folder of the repository, with ``configs/`` and ``docs/``.

    Raises:
        UserError: See ``read_notes``.
    """

    def __init__(self, root: Path):
        self.root = root
        self.names = sorted(path.stem for path in (root / 'configs').glob('*.py'))
        self.notes = read_notes(root / 'docs/model_zoo.yml', self.names)
        self._costs = {}
        self._machines = set()

    def row(self, name: str) -> tuple[tuple, list[str]]:
        """Return the key by which a config is sorted in its table, and its cells."""
        cfg = load_config(str(self.root / f'configs/{name}.py'))
        backbone, method = cfg.model.backbone, method_of(cfg)
        sizes = [size for pattern, size in self.notes['pixels'].items() if fnmatch.fnmatch(name, pattern)]
        height, width = pixels = tuple(sizes[-1]) if sizes else pixels_of(cfg)
        key = _identity(cfg, pixels)
        if key not in self._costs:
            self._costs[key] = cost(cfg, pixels)
        found, measured = self._costs[key], []
        for note in self.notes['measured'].get(name, []):
            words, machine = measured_in_words(note, name, self.root / 'docs/results')
            measured.append(words)
            self._machines.add(machine)
        parameters = f'{found.parameters / 1e6:.1f}'
        if backbone.get('peft'):
            parameters += f', {found.trained / 1e6:.1f} trained'
        cells = [
            f'[{name}](../configs/{name}.py)',
            method,
            f'{height}x{width}',
            'by image' if found.gflops is None else f'{found.gflops:.{1 if found.gflops >= 10 else 2}f}',
            parameters,
            tokens_in_words(found),
            self.notes['published'].get(name, ''),
            '; '.join(measured),
        ]
        return (
            name.split('_')[0],
            backbone.type,
            backbone.get('embed_dims', 0),
            '_linear_' in name,
            method != 'plain',
            name,
        ), cells

    def table(self, title: str, progress: Callable[[], None] = lambda: None) -> str:
        """Format a table of the page with its heading; calls ``progress`` after each config."""
        rows = []
        for name in self.names:
            if _fits(name, self.notes['tables'][title]):
                rows.append(self.row(name))
                progress()
        return f'## {title}\n\n{markdown_rows([COLUMNS, *(cells for _, cells in sorted(rows))], WORDS)}\n'

    def page(self, progress: Callable[[], None] = lambda: None) -> str:
        """Format the page in Markdown; calls ``progress`` after each config."""
        tables = [self.table(title, progress) for title in self.notes['tables']]
        sources = '\n'.join(f'- **{key}**: {source}' for key, source in self.notes['sources'].items())
        return '\n'.join([HEAD.format(machines='; '.join(sorted(self._machines))), f'{sources}\n', *tables])


HEAD = """\
<!-- Made by `python tools/model_zoo.py` from configs/ and docs/model_zoo.yml: edit those, and run it again. -->
# Model zoo

Every config of this repository, counted by `python tools/model_zoo.py`. There are no published weights: train, or
[convert](checkpoints.md) those of the original releases.

- **GFLOPs**: 10^9 multiply-adds of one image of so many pixels, backbone and head, as `tools/benchmark.py` counts them.
  ALGM's depend on the image. For Cascade Mask R-CNN they end at the proposals, whose number depends on the image.
- **M params**: millions, of the model as it is deployed: Cropr without its auxiliary heads, nothing of a teacher. With
  [`peft`](peft.md) also how many are trained.
- **Patch tokens by layer**: on how many attention computes, tokens x layers. DAR leaves them all; its FFN
  runs on half.
- **Published**: by the papers below, on other machines and with their own weights, only where the config is what
  they describe. Nothing of it was measured here.
- **Measured here**: accuracy, and how many times as fast as the plain model, in one run; the link leads to the record.
  {machines}. [All benchmarks](benchmarks.md).

Sources of what is published:
"""
