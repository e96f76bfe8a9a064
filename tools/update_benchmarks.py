"""Rewrite the tables of docs/benchmarks.md from the recorded results that they name (docs/results/)."""

import argparse
from pathlib import Path

from mmtr.errors import UserError, command
from mmtr.reports.benchmarks import refresh


@command
def main() -> None:
    """Rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'page',
        nargs='?',
        type=Path,
        help='default docs/benchmarks.md',
        default=Path(__file__).resolve().parents[1] / 'docs/benchmarks.md',
    )
    page = parser.parse_args().page
    if not page.is_file():
        raise UserError(f"The page '{page}' is not there: give the one of a checkout.")
    page.write_text(refresh(page.read_text(), page.resolve().parent))
    print(f'{page} is up to date.')


if __name__ == '__main__':
    main()
