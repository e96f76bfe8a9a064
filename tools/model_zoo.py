"""Rewrite docs/model_zoo.md from the configs, docs/model_zoo.yml and the recorded results; takes minutes."""

import argparse
import sys
from pathlib import Path

from mmengine import ProgressBar
from mmengine.logging import MMLogger

from mmtr.errors import UserError, command
from mmtr.reports.model_zoo import Zoo


@command
def main() -> None:
    """Write the page."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    MMLogger.get_instance('mmengine', log_level='ERROR')
    root = Path(__file__).resolve().parents[1]
    if not (root / 'docs/model_zoo.yml').is_file():
        raise UserError(f"'{root}' has no docs/model_zoo.yml: run this in a checkout.")
    zoo = Zoo(root)
    page = zoo.page(ProgressBar(len(zoo.names), file=sys.stderr).update)
    print(file=sys.stderr)
    (root / 'docs/model_zoo.md').write_text(page)
    print(f'docs/model_zoo.md is up to date: {len(zoo.names)} configs.')


if __name__ == '__main__':
    main()
