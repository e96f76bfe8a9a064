"""docs/classification.md: its commands are those of the tools, its config builds."""

import argparse
import re
import runpy
import shlex
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import init_default_scope

from mmtr.config.files import load_config
from mmtr.inference.model import build_model

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs/classification.md').read_text()
BLOCK = re.compile(r'(?ms)^```\w*\n(.*?)^```')
BLOCKS = BLOCK.findall(PAGE)
ELSEWHERE = [block for block in BLOCK.findall((ROOT / 'docs/benchmarks.md').read_text()) if 'mmpretrain::' in block]
COMMANDS = [line for block in BLOCKS + ELSEWHERE for line in block.splitlines() if line.startswith('python tools/')]


class Parsed(BaseException):
    """A tool has read its command line."""


@pytest.mark.parametrize('command', COMMANDS)
def test_tools_take_the_commands(command, monkeypatch):
    _, tool, *args = shlex.split(command)
    parse = argparse.ArgumentParser.parse_args

    def stop(self, *given):
        parse(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', stop)
    monkeypatch.setattr(sys, 'argv', [tool, *args])
    monkeypatch.syspath_prepend(str(ROOT / 'tools'))
    with pytest.raises(Parsed):  # what it cannot read ends in SystemExit
        runpy.run_path(str(ROOT / tool), run_name='__main__')
    for config in re.findall(r'configs/\w[\w-]*\.py', command):
        assert load_config(str(ROOT / config)).model.type == 'mmtr.ImageClassifier'


def test_there_are_commands():
    assert len(COMMANDS) >= 8


def test_the_config_builds_and_reduces(tmp_path):
    (block,) = (block for block in BLOCKS if '_base_' in block)
    (tmp_path / 'page.py').write_text(block)
    cfg = load_config(str(tmp_path / 'page.py'))
    cfg.model.backbone.arch = dict(embed_dims=16, num_layers=12, num_heads=2, feedforward_channels=16)
    cfg.model.head.in_channels = 16
    init_default_scope('mmpretrain')
    model = build_model(cfg)
    assert min(model.backbone.token_schedule((384, 384))) < 576
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 384, 384)).shape == (1, 1000)
