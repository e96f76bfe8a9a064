"""What the pages on adding say is enough: each is followed in a copy of the repository, whose tests then pass.

A page names a file by "goes to", blocks of code follow; its table says where else the new class is listed.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
#: What a checkout has beside the repository.
BESIDE = ('.*', '__pycache__', '*.egg-info', 'build', 'dist', 'site', 'data', 'work_dirs', 'checkpoints')
#: Tests of the pages and lists; those that add the class of a page themselves cannot where it is.
LISTS = '((test_docs.py or test_rooms.py or test_site.py or test_optional.py) and not the_documented)'


class Copy:
    """A copy of the repository, into which the files of a page are written."""

    def __init__(self, folder, kind):
        self.root = folder / 'copy'
        shutil.copytree(ROOT, self.root, ignore=shutil.ignore_patterns(*BESIDE))
        self.page = (ROOT / f'docs/add_a_{kind}.md').read_text()
        files, path = {}, None
        for named, block in re.findall(r'goes to\s`([\w./-]+)`|```python\n(.*?)```', self.page, re.S):
            path = named or path
            files.setdefault(path, []).extend([block] if block else [])
        assert files and all(files.values())
        for path, blocks in files.items():
            assert not (self.root / path).exists()
            (self.root / path).write_text('\n\n'.join(blocks))
        self.files = list(files)

    def listed(self):
        """(file or folder, what the page says of it, the code in that) of each row of the table."""
        rows = re.findall(r'^\| `([^`]+)` \| (.+) \|$', self.page.split('| where | what |')[1].split('```')[0], re.M)
        for where, what in rows:
            yield where, what, re.findall(r'`([^`]+)`', what)

    def run(self, command):
        """Run a command in the copy, on the copy's package; returns its output."""
        env = {name: value for name, value in os.environ.items() if not name.startswith('PYTEST')}
        ran = subprocess.run(
            [sys.executable, *command],
            cwd=self.root,
            env={**env, 'PYTHONPATH': str(self.root), 'OMP_NUM_THREADS': '1'},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert ran.returncode == 0, f'{command}\n{ran.stdout[-20000:]}'
        return ran.stdout

    def export(self, where, line):
        """Import a class in a package, in the order of the alphabet, and add its name to ``__all__``."""
        init, name = self.root / where, line.split()[-1]
        lines = init.read_text().splitlines()
        relative = [each for each in lines if each.startswith('from .')]
        place = lines.index(relative[0])
        lines[place : place + len(relative)] = sorted([*relative, line])
        init.write_text('\n'.join(lines).replace('__all__ = [', f"__all__ = ['{name}', ") + '\n')
        self.run(['-m', 'ruff', 'format', '-q', str(init)])

    def check(self, *words):
        """Run the tests that the new class affects; returns the names of those that passed."""
        found = self.run(['-c', 'import mmtr; print(mmtr.__file__)']).split()[-1]
        assert Path(found) == self.root / 'mmtr/__init__.py'
        self.run(['-m', 'ruff', 'check', '.'])
        self.run(['-m', 'ruff', 'format', '--check', *[path for path in self.files if path.endswith('.py')]])
        chosen = ['-m', 'not slow', '-k', ' or '.join((*words, LISTS))]
        self.run(['-m', 'pytest', '-q', '-x', '-p', 'no:cacheprovider', '--junitxml=passed.xml', *chosen, 'tests'])
        cases = ElementTree.parse(self.root / 'passed.xml').iter('testcase')
        return [f'{case.get("classname")}::{case.get("name")}' for case in cases if not len(case)]


def untried(passed, word, *tests):
    """The tests that have not passed with this word among their parameters."""
    return [test for test in tests if not any(f'::{test}[' in case and word in case for case in passed)]


@pytest.mark.slow
def test_the_page_on_methods_leaves_nothing_out(tmp_path):
    copy = Copy(tmp_path, 'method')
    for where, what, codes in copy.listed():
        path = copy.root / where
        if where.endswith('__init__.py'):
            copy.export(where, codes[0])
        elif where == 'configs/':
            first = copy.root / copy.files[-1]
            for data in codes:
                name = first.name.replace('ade20k', data)
                (path / name).write_text(first.read_text().replace('ade20k', data))
        elif where == 'configs/reductions/all_methods.py':
            path.write_text(path.read_text().rstrip().removesuffix('}') + f'    {codes[0]}\n}}\n')
        elif where == 'docs/token_reduction.md':
            section = re.search(r'```markdown\n(.*?)```', copy.page, re.S)[1]
            path.write_text(path.read_text().replace('\n## Random\n', f'\n{section}\n## Random\n'))
            copy.run(codes[0].split()[1:])
        elif where == 'docs/model_zoo.md':
            copy.run(codes[0].split()[1:])
        else:
            raise AssertionError(f'{where}: {what}')
    passed = copy.check(
        'dropcolumns',
        'test_every_size_head_and_data_set',
        'test_compare_all_holds_every_method',
        'test_the_page_has_each_config_once',
    )
    assert [] == untried(
        passed,
        'DropColumns',
        'test_heads_receive_the_full_grid',
        'test_nothing_to_reduce_is_the_plain_model',
        'test_token_schedule_is_what_the_layers_see',
        'test_whatever_a_search_draws_works',
        'test_a_method_takes_no_hostile_value',
        'test_every_setting_is_declared',
        'test_every_option_is_documented_with_its_default',
        'test_every_method_works_on_the_documented_host',
    )
    assert [] == untried(passed, 'segmenter_dropcolumns_ade20k', 'test_config_is_consistent')
    assert [] == untried(passed, 'segmenter_dropcolumns_cityscapes', 'test_reduced_config_is_its_base_and_one_key')


@pytest.mark.slow
def test_the_page_on_hosts_leaves_nothing_out(tmp_path):
    copy = Copy(tmp_path, 'host')
    for where, what, codes in copy.listed():
        assert where.endswith('__init__.py'), f'{where}: {what}'
        copy.export(where, codes[0])
    passed = copy.check('sincosvit', 'test_every_host_is_among_them')
    assert [] == untried(
        passed,
        'sincosvit',
        'test_heads_receive_the_full_grid',
        'test_an_image_does_not_depend_on_its_batch',
        'test_token_schedule_is_what_the_layers_see',
        'test_checkpointing_changes_no_gradient',
        'test_a_branch_is_its_parts',
    )
    assert [] == untried(
        passed, 'SinCosViT', 'test_a_backbone_takes_no_hostile_value', 'test_every_setting_is_declared'
    )
