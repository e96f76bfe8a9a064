"""python -m mmtr TOOL, in a checkout. That it runs tools of an installed wheel is in tests/test_packaging.py."""

import runpy
import sys

import pytest

from tests.conftest import TOOLS


def said(monkeypatch, capsys, *args):
    """Exit status, and what went to stdout and stderr."""
    monkeypatch.setattr(sys, 'argv', ['mmtr', *args])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module('mmtr', run_name='__main__')
    return stop.value.code, *capsys.readouterr()


def test_a_tool_gets_the_arguments_after_its_name(monkeypatch, capsys):
    status, out, _ = said(monkeypatch, capsys, 'draw_masks', '--help')
    assert status == 0 and out.startswith('usage: draw_masks.py ')


def test_an_unknown_tool_is_told_which_there_are(monkeypatch, capsys):
    names = ', '.join(sorted(path.stem for path in TOOLS.glob('*.py')))
    assert said(monkeypatch, capsys, 'tests') == (2, '', f"Error: There is no tool 'tests': give one of {names}.\n")
    assert said(monkeypatch, capsys, 'update_benchmarks', 'no.md') == (
        2,
        '',
        "Error: The page 'no.md' is not there: give the one of a checkout.\n",
    )
