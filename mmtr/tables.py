"""Rows of cells, the head first, as a table for a terminal or a page."""

from collections.abc import Sequence


def aligned_rows(rows: Sequence[Sequence[str]], words: tuple[int, ...] = (0,)) -> str:
    """Rows of cells as columns of one width; columns that are not ``words`` are numbers."""
    widths = [max(map(len, column)) for column in zip(*rows)]
    lines = (
        '  '.join(
            cell.ljust(width) if i in words else cell.rjust(width) for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )
    return '\n'.join(line.rstrip() for line in lines)


def markdown_rows(rows: Sequence[Sequence[str]], words: tuple[int, ...] = (0,)) -> str:
    """Rows of cells as a Markdown table; columns that are not ``words`` are numbers."""
    head, *others = rows
    marks = ['---' if i in words else '---:' for i in range(len(head))]
    return '\n'.join('| ' + ' | '.join(row) + ' |' for row in (head, marks, *others))
