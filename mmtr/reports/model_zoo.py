"""Write the page of all configs: the counted cost of each model, beside published and measured results."""

import fnmatch
import json
import re
from pathlib import Path
from typing import Callable

import yaml
from mmengine.config import Config

from mmtr.analysis.trade_offs import main_metric
from mmtr.config.files import load_config
from mmtr.errors import UserError
from mmtr.words import markdown_rows

from .benchmarks import machine_in_words
from .model_cost import cost, identity, pixels_of, tokens_in_words

COLUMNS = ('config', 'method', 'pixels', 'GFLOPs', 'M params', 'patch tokens by layer', 'published', 'measured here')
#: Indices of the columns of text.
WORDS = (0, 1, 2, 5, 6, 7)
#: A row of the page: the name of the config, and its other cells.
_ROW = re.compile(r'^\| \[(\S+)\]\(\S+\) \| (.*) \|$', re.MULTILINE)


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


def method_of(cfg: Config) -> str:
    """Name the reduction and the fine-tuning of a config."""
    hooks = [hook.token_reduction for hook in cfg.get('custom_hooks', []) if 'token_reduction' in hook]
    reduction, peft = hooks[0] if hooks else cfg.model.backbone.get('token_reduction'), cfg.model.backbone.get('peft')
    words = [reduction.type] if reduction else []
    words += [f'peft {peft.type}'] if peft else []
    words += ['distilled'] if cfg.model.get('distillation') else []
    return ', '.join(words) or 'plain'


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
        only_new: Whether only configs without a row in docs/model_zoo.md are counted; what is counted of the others is
            read from there.

    Raises:
        UserError: See ``read_notes``.
    """

    def __init__(self, root: Path, only_new: bool = False):
        self.root = root
        self.names = sorted(path.stem for path in (root / 'configs').glob('*.py'))
        self.notes = read_notes(root / 'docs/model_zoo.yml', self.names)
        self._costs = {}
        self._machines = set()
        rows = _ROW.finditer((root / 'docs/model_zoo.md').read_text()) if only_new else ()
        #: Cells of what was counted earlier, by name, in the order of the page.
        self._counted = {row[1]: row[2].split(' | ')[:5] for row in rows if row[1] in self.names}
        self.new = [name for name in self.names if name not in self._counted]

    def _count(self, name, cfg):
        sizes = [size for pattern, size in self.notes['pixels'].items() if fnmatch.fnmatch(name, pattern)]
        height, width = pixels = tuple(sizes[-1]) if sizes else pixels_of(cfg)
        key = identity(cfg, pixels)
        if key not in self._costs:
            self._costs[key] = cost(cfg, pixels)
        found = self._costs[key]
        parameters = f'{found.parameters / 1e6:.1f}'
        if cfg.model.backbone.get('peft'):
            parameters += f', {found.trained / 1e6:.1f} trained'
        return [
            method_of(cfg),
            f'{height}x{width}',
            'by image' if found.gflops is None else f'{found.gflops:.{1 if found.gflops >= 10 else 2}f}',
            parameters,
            tokens_in_words(found),
        ]

    def _cells(self, name, counted):
        measured = []
        for note in self.notes['measured'].get(name, []):
            words, machine = measured_in_words(note, name, self.root / 'docs/results')
            measured.append(words)
            self._machines.add(machine)
        link = f'[{name}](../configs/{name}.py)'
        return [link, *counted, self.notes['published'].get(name, ''), '; '.join(measured)]

    def row(self, name: str) -> tuple[tuple, list[str]]:
        """Return the key by which a config is sorted in its table, and its cells."""
        cfg = load_config(str(self.root / f'configs/{name}.py'))
        backbone, counted = cfg.model.backbone, self._counted.get(name) or self._count(name, cfg)
        return (
            name.split('_')[0],
            backbone.type,
            backbone.get('embed_dims', 0),
            '_linear_' in name,
            method_of(cfg) != 'plain',
            name,
        ), self._cells(name, counted)

    def table(self, title: str, progress: Callable[[], None] = lambda: None) -> str:
        """Format a table of the page with its heading; calls ``progress`` after each new config."""
        names, rows = [name for name in self.names if _fits(name, self.notes['tables'][title])], []
        if any(name in self.new for name in names):
            for name in names:
                rows.append(self.row(name))
                if name in self.new:
                    progress()
            rows = [cells for _, cells in sorted(rows)]
        else:  # in the order of the page; no config is read
            rows = [self._cells(name, counted) for name, counted in self._counted.items() if name in names]
        return f'## {title}\n\n{markdown_rows([COLUMNS, *rows], WORDS)}\n'

    def page(self, progress: Callable[[], None] = lambda: None) -> str:
        """Format the page in Markdown; calls ``progress`` after each new config."""
        tables = [self.table(title, progress) for title in self.notes['tables']]
        sources = '\n'.join(f'- **{key}**: {source}' for key, source in self.notes['sources'].items())
        return '\n'.join([HEAD.format(machines='; '.join(sorted(self._machines))), f'{sources}\n', *tables])


HEAD = """\
<!-- Made by `python tools/model_zoo.py` from configs/ and docs/model_zoo.yml: edit those, and run it again. -->
# Model zoo

Every config of this repository, counted by `python tools/model_zoo.py`. There are no published weights: train, or
[convert](checkpoints.md) those of the original releases.

- **GFLOPs**: 10^9 multiply-adds of one image of so many pixels, backbone and head, as `tools/benchmark.py` counts them.
  ALGM's and MPM's depend on the image. For Cascade Mask R-CNN they end at the proposals, whose number depends on the
  image.
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
