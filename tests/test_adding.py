"""The pages on adding a method and a host, followed step by step in a copy of the repository."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
AWAY = shutil.ignore_patterns('.*', '__pycache__', '*.egg-info', 'build', 'dist', 'data', 'site', 'work_dirs')
DATA = ('ade20k', 'cityscapes', 'pascal-context')


class Copy:
    """A copy of the repository, to which the code of a page is added."""

    def __init__(self, root, page):
        self.root = root
        shutil.copytree(ROOT, root, ignore=AWAY)
        self.blocks = re.findall(r'```python\n(.*?)```', (root / 'docs' / page).read_text(), re.S)

    def write(self, path, text):
        assert not (self.root / path).exists()
        (self.root / path).write_text(text)

    def edit(self, path, before, after):
        text = (self.root / path).read_text()
        assert text.count(before) == 1, (path, before)
        (self.root / path).write_text(text.replace(before, after))

    def run(self, *command):
        """The output of Python with ``command`` in the copy; a failure is the test's."""
        ran = subprocess.run(
            [sys.executable, '-W', 'ignore', *command],
            cwd=self.root,
            env={**os.environ, 'PYTHONPATH': str(self.root)},
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, f'{command}\n{ran.stdout[-6000:]}\n{ran.stderr[-2000:]}'
        return ran.stdout

    def test(self, *paths, keyword=None):
        """How many tests of the copy pass; none may fail."""
        chosen = ['-k', keyword] if keyword else []
        # Without the options of setup.cfg, whose -q leaves the count out.
        out = self.run(
            '-m', 'pytest', '-q', '-o', 'addopts=', '-p', 'no:cacheprovider', '-m', 'not slow', *paths, *chosen
        )
        return int(re.search(r'(\d+) passed', out)[1])


@pytest.mark.slow
def test_a_method_is_added_by_the_steps_of_the_page(tmp_path):
    copy = Copy(tmp_path / 'mmtr', 'add_a_method.md')
    arithmetic, reducer, config = copy.blocks
    copy.write('mmtr/ops/columns.py', f'"""Keeping some columns of a grid."""\n\n{arithmetic}')
    copy.write('mmtr/reducers/drop_columns.py', f'"""Dropping columns of tokens."""\n\n{reducer}')
    package = 'mmtr/reducers/__init__.py'
    copy.edit(package, 'from .dar import DAR\n', 'from .dar import DAR\nfrom .drop_columns import DropColumns\n')
    copy.edit(package, "    'EViT',\n", "    'DropColumns',\n    'EViT',\n")
    assert str(copy.root) in copy.run('-c', 'from mmtr.reducers import drop_columns; print(drop_columns.__file__)')
    copy.edit(
        'configs/reductions/all_methods.py',
        "    **_each('GridPool'",
        "    **_each('DropColumns', 'every', (2, 3, 4)),\n    **_each('GridPool'",
    )
    head = '| option | default | allowed | what it is |\n|---|---|---|---|\n'
    copy.edit('docs/token_reduction.md', '## EViT\n', f'## DropColumns\n\nColumns.\n\n{head}\n## EViT\n')
    copy.run('docs/options.py')
    for data in DATA:
        copy.write(f'configs/segmenter_dropcolumns_{data}.py', config.replace('ade20k', data))
    # tools/model_zoo.py counts all configs again: here it is told to count those of the method.
    script = (
        'from pathlib import Path\n'
        'from mmtr.reports.model_zoo import Zoo\n'
        'zoo, page = Zoo(Path(".")), Path("docs/model_zoo.md")\n'
        'rows = [zoo.row(name)[1] for name in zoo.names if "dropcolumns" in name]\n'
        'page.write_text(page.read_text() + "".join("| " + " | ".join(row) + " |\\n" for row in rows))\n'
    )
    copy.run('-c', script)

    assert copy.test('tests/test_reducers/test_contract.py', keyword='DropColumns') > 30
    assert copy.test('tests/test_reducers/test_contract_calls.py', keyword='DropColumns') > 10
    assert copy.test('tests/test_settings.py', 'tests/test_reducers/test_words.py', keyword='DropColumns') > 1
    assert copy.test('tests/test_docs.py', keyword='documented_with_its_default or declarations') > 10
    assert copy.test('tests/test_analysis/test_model_zoo.py', keyword='each_config_once') == 1
    assert copy.test('tests/test_configs.py', 'tests/test_configs_published.py') > 100
    assert copy.test('tests/test_rooms.py') > 5


@pytest.mark.slow
def test_a_host_is_added_by_the_steps_of_the_page(tmp_path):
    copy = Copy(tmp_path / 'mmtr', 'add_a_host.md')
    *host, small = copy.blocks
    copy.write('mmtr/models/backbones/sincos_vit.py', '"""A plain ViT."""\n\n' + '\n\n'.join(host))
    package = 'mmtr/models/backbones/__init__.py'
    copy.edit(package, 'from .vit import', 'from .sincos_vit import SinCosViT\nfrom .vit import')
    copy.edit(package, "'EVA02', ", "'EVA02', 'SinCosViT', ")
    imported = 'from mmtr.models.backbones import SinCosViT\n'
    contract = 'tests/test_reducers/test_contract.py'
    copy.edit(contract, '#: mmpretrain is no part', f'{imported}\n\n{small}\n\n#: mmpretrain is no part')
    copy.edit(contract, 'BACKBONES = (vit,', 'BACKBONES = (sincos_vit, vit,')
    copy.edit('tests/test_settings.py', 'BACKBONES = {\n', f'{imported}BACKBONES = {{\n    SinCosViT: PLAIN,\n')

    assert copy.test(contract, keyword='sincos_vit') > 100
    assert copy.test('tests/test_reducers/test_contract_calls.py', keyword='sincos_vit') > 20
    assert copy.test('tests/test_models/test_attention_contract.py', keyword='sincos_vit') > 2
    assert copy.test('tests/test_peft/test_branches.py', keyword='sincos_vit') > 5
    assert copy.test('tests/test_settings.py', keyword='SinCosViT or every_host') > 2
    assert copy.test('tests/test_rooms.py', 'tests/test_site.py') > 5
