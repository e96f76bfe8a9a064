"""Parse settings on the command line: ``--cfg-options KEY=VALUE ...``, ``--token-reduction NAME KEY=VALUE ...``."""

import argparse
import ast
from collections.abc import Iterable, Sequence
from typing import Any, Optional

from mmengine.config import DictAction

from mmtr.errors import UserError


def parse_value(text: str) -> Any:
    """Parse the VALUE of a setting KEY=VALUE, without running any code in it.

    A value is a Python literal, ``dict(...)``, or one of mmengine's forms: true and false, ``a,b`` for a list, and
    text without quotes, also in lists.

    Raises:
        UserError: ``text`` has unbalanced brackets, or calls something other than ``dict``.
    """
    try:
        node = ast.parse(text.strip(), mode='eval').body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return _text(text)
    value = _value(node, text.strip())
    # mmengine writes lists as a,b without brackets: then the first element starts at column 0.
    bare = isinstance(node, ast.Tuple) and node.elts and node.elts[0].col_offset == 0
    return list(value) if bare else value


def _text(text):
    for opening, closing in ('[]', '()', '{}'):
        if text.count(opening) != text.count(closing):
            raise UserError(
                f"'{text}' has {text.count(opening)} '{opening}' and {text.count(closing)} '{closing}': "
                'values are like 0.3, [a,b] or dict(a=1), in quotes where the shell would take them apart.'
            )
    if any(bracket in text for bracket in '({'):
        raise UserError(f"'{text}' is no value: give Python's literals or dict(...), and text with brackets in quotes.")
    return DictAction._parse_iterable(text)


def _value(node, source):
    if isinstance(node, (ast.List, ast.Tuple)):
        values = [_value(each, source) for each in node.elts]
        return values if isinstance(node, ast.List) else tuple(values)
    if isinstance(node, ast.Dict) and None not in node.keys:
        return {_value(key, source): _value(value, source) for key, value in zip(node.keys, node.values)}
    if isinstance(node, ast.Call):
        plain = isinstance(node.func, ast.Name) and node.func.id == 'dict' and not node.args
        if not plain or any(each.arg is None for each in node.keywords):
            raise UserError(
                f"'{ast.get_source_segment(source, node)}' is no value: of all calls, only dict(key=value, "
                '...) is one; text with brackets needs quotes of its own.'
            )
        return {each.arg: _value(each.value, source) for each in node.keywords}
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError):
        return DictAction._parse_int_float_bool(ast.get_source_segment(source, node))


def parse_settings(options: Iterable[str]) -> dict[str, Any]:
    """Parse texts KEY=VALUE to a dict; raises ``UserError`` for a text of another form."""
    settings = {}
    for option in options:
        key, equals, value = option.partition('=')
        if not (key and equals):
            raise UserError(f"Settings are given as key=value, and lists as key=[a,b], not '{option}'.")
        settings[key] = parse_value(value)
    return settings


class Options(argparse.Action):
    """An ``argparse`` action that collects KEY=VALUE settings in a dict, over repeated options."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: Optional[str] = None,
    ) -> None:
        """Add the settings to those of earlier options; see ``argparse.Action``."""
        setattr(namespace, self.dest, {**(getattr(namespace, self.dest) or {}), **parse_settings(values)})


class TokenReduction(argparse.Action):
    """An ``argparse`` action that parses NAME KEY=VALUE ... to ``dict(type=NAME, ...)``; 'none' to an empty dict."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Sequence[str],
        option_string: Optional[str] = None,
    ) -> None:
        """Store the dict, a value of the config key ``token_reduction``; see ``argparse.Action``."""
        name, *settings = values
        if '=' in name:
            raise UserError(
                f"{option_string} begins with the name of a method, as in '{option_string} TokenAdapter "
                f"ratio=0.3', and '{name}' is a setting."
            )
        none = name.lower() == 'none'
        if none and settings:
            raise UserError(f"{option_string} {name} takes the reduction away, so it has no settings: '{settings[0]}'.")
        setattr(namespace, self.dest, {} if none else {'type': name, **parse_settings(settings)})
