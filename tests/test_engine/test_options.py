"""Settings on the command line."""

import argparse

import pytest
from mmengine.config import Config, DictAction

from mmtr import UserError
from mmtr.config.files import (
    add_options,
    add_token_reduction,
    inherited,
    load_config,
    merge_options,
    read_config,
    with_reduction,
)
from mmtr.config.options import parse_value

HOOK = dict(type='mmtr.TokenReductionHook', token_reduction=dict(type='TokenAdapter', ratio=0.3))


# What mmengine takes means the same to us.
@pytest.mark.parametrize(
    'text',
    [
        '1',
        '-1',
        '007',
        '0.3',
        '1e-3',
        'inf',
        'True',
        'true',
        'False',
        'None',
        'text',
        'a/b-c.pth',
        '2024-11-12',
        '3.11.2',
        'https://a.b/c.pth',
        's3://a/b',
        'a,b',
        '1,2,3',
        '[a,b]',
        '[a, b]',
        '[1,2.5,true,None]',
        '(0.25,0.25)',
        '(1,)',
        '[]',
        '()',
        '[(1,2),(3,4)]',
        '[(1, 2, 3), [a, b], c]',
        '[a/b.png,c]',
        '"a"',
        "'a'",
        '',
        'mmtr.VisionTransformer',
        '~/x',
        '*.png',
    ],
)
def test_as_mmengine(text):
    value, expected = parse_value(text), DictAction._parse_iterable(text)
    assert value == expected and type(value) is type(expected)


@pytest.mark.parametrize(
    'text',
    [
        "[dict(type='X', a=(0.3, 0.2), b=dict(c=None)), dict()]",
        "{'a': [1, 2], 'b': {'c': -1.5}}",
        "dict(a=[dict(b='x y')])",
        "'a b(c)'",
    ],
)
def test_as_python(text):
    assert parse_value(text) == eval(text)


def test_words_without_quotes_and_lists_without_brackets():
    assert parse_value('dict(type=TokenAdapter, layers=(2,4), mmtr=mmtr.X)') == dict(
        type='TokenAdapter', layers=(2, 4), mmtr='mmtr.X'
    )
    assert parse_value('(1,2),(3,4)') == [(1, 2), (3, 4)]
    assert parse_value('dict(a=1),b') == [dict(a=1), 'b']


@pytest.mark.parametrize(
    'text, words',
    [
        ("__import__('os').system('echo x')", 'of all calls, only dict'),
        ('[open(1)]', "'open\\(1\\)' is no value"),
        ('dict(1)', 'of all calls'),
        ("dict(**{'a': 1})", 'of all calls'),
        ('[1,2', "1 '\\[' and 0 '\\]'"),
        ('(a', "1 '\\('"),
        ('[' * 300, '300'),
        ('(' * 300 + ')' * 300, 'is no value'),
        ('a b(c)', 'text with brackets in quotes'),
    ],
)
def test_nothing_is_run_and_what_is_no_value_is_said(text, words, monkeypatch):
    monkeypatch.setattr('builtins.eval', None)
    with pytest.raises(UserError, match=words):
        parse_value(text)


def parse(*args):
    parser = argparse.ArgumentParser()
    add_options(parser)
    add_token_reduction(parser)
    return parser.parse_args(args)


def test_from_the_command_line():
    args = parse('--cfg-options', 'a.b=1', 'c=[dict(d=2)]', '--cfg-options', 'a.b=3', 'e=x=y')
    assert args.cfg_options == {'a.b': 3, 'c': [dict(d=2)], 'e': 'x=y'} and args.token_reduction is None
    assert parse().cfg_options == {}
    args = parse('--token-reduction', 'TokenAdapter', 'ratio=(0.3,0.2)', 'layers=(2,4)')
    assert args.token_reduction == dict(type='TokenAdapter', ratio=(0.3, 0.2), layers=(2, 4))
    assert parse('--token-reduction', 'none').token_reduction == {}
    short = '--token-reduction'
    for given, words in (
        (['--cfg-options', 'a'], "not 'a'"),
        ([short, 'ratio=1'], 'name of a method'),
        ([short, 'ToMe', '0.3'], "not '0.3'"),
        ([short, 'none', 'r=1'], "'r=1'"),
    ):
        with pytest.raises(UserError, match=words):
            parse(*given)


def write(tmp_path, text):
    (tmp_path / 'a.py').write_text(text)
    return str(tmp_path / 'a.py')


@pytest.mark.parametrize(
    'backbone, hooks, key, others',
    [
        ("type='mmtr.VisionTransformer'", '[]', True, []),
        ("type='mmtr.VisionTransformer',token_reduction=None", '[]', True, []),
        (
            "type='mmtr.VisionTransformer',token_reduction=dict(type='ToMe',r=8)",
            f'[dict(type="A"),{HOOK}]',
            True,
            ['A'],
        ),
        ("type='VisionTransformer'", '[dict(type="A")]', False, ['A']),
        ("type='VisionTransformer'", f'[{HOOK},dict(type="A")]', False, ['A']),
    ],
)
def test_the_short_form_is_the_only_reduction(tmp_path, backbone, hooks, key, others):
    path = write(tmp_path, f'model = dict(backbone=dict({backbone}))\ncustom_hooks = {hooks}\n')

    def read(*args):
        options = parse(*args)
        options.config = path
        cfg = read_config(options)
        return cfg.model.backbone.get('token_reduction'), [hook.to_dict() for hook in cfg.custom_hooks]

    reduction = dict(type='TokenAdapter', ratio=0.5)
    hook = dict(type='mmtr.TokenReductionHook', token_reduction=reduction)
    expected = [dict(type=name) for name in others]
    assert read('--token-reduction', 'TokenAdapter', 'ratio=0.5') == (
        (reduction, expected) if key else (None, [*expected, hook])
    )
    assert read('--token-reduction', 'none') == (None, expected)
    # And what is written for it reads the same.
    changes = with_reduction(load_config(path), reduction)
    (tmp_path / 'further').mkdir()
    (tmp_path / 'further/b.py').write_text(inherited(path, changes, tmp_path / 'further'))
    cfg = Config.fromfile(tmp_path / 'further/b.py')
    merge_options(before := load_config(path), with_reduction(load_config(path), reduction))
    assert cfg.to_dict() == before.to_dict()


def test_a_config_without_a_backbone_is_refused(tmp_path):
    options = parse('--token-reduction', 'ToMe')
    options.config = write(tmp_path, 'a = 1\n')
    with pytest.raises(UserError, match='has no model with a backbone'):
        read_config(options)
