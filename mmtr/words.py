"""Format lists and tables as text."""

from collections.abc import Iterable, Sequence


def some(items: Iterable, most: int = 4) -> str:
    """Format the first ``most`` items for a message: ``a, b, ...``."""
    shown = [str(item) for item in items]
    return ', '.join(shown[:most]) + (', ...' if len(shown) > most else '')


def aligned_rows(rows: Sequence[Sequence[str]], words: tuple[int, ...] = (0,)) -> str:
    """Format rows of cells, the head first, as aligned columns.

    Args:
        words: Indices of the columns of text, aligned left; all others are numbers, aligned right.
    """
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = (
        '  '.join(
            cell.ljust(width) if i in words else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )
    return '\n'.join(line.rstrip() for line in lines)


def markdown_rows(rows: Sequence[Sequence[str]], words: tuple[int, ...] = (0,)) -> str:
    """Format rows of cells, the head first, as a Markdown table; ``words`` as in :func:`aligned_rows`."""
    head, *others = rows
    marks = ['---' if i in words else '---:' for i in range(len(head))]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in (head, marks, *others))
