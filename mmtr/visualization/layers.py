"""Draw measures by layer as figures, one line a reduction."""

import math
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours for colour-blind readers; lines also differ in marker, for print in grey.
COLORS = ('#000000', '#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#999999', '#7F3C8D')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*', '<', '>', 'p')
#: Values within SAME, a share of the axis, count as equal. Equal lines are drawn as alternating dashes of DASH line
#: widths each.
SAME, DASH = 0.015, 2.5

#: File name -> title, labels of the x and y axes, quantities (drawn one after the other within a layer).
FIGURES = dict(
    attention_diversity=(
        'Attention diversity',
        'layer',
        '1 - mean cosine similarity\nof attention maps',
        ['attention_diversity'],
    ),
    token_similarity=('Token similarity', 'layer', 'mean cosine similarity\nof patch tokens', ['token_similarity']),
    tokens=(
        'Patch tokens',
        'layer (its attention; half a step later its FFN)',
        'patch tokens',
        ['attention_tokens', 'ffn_tokens'],
    ),
    time=('Time', 'layer', 'ms/image', ['ms']),
)


def draw_layers(results: dict[str, dict], folder: Path) -> list[Path]:
    """Draw results of ``analyze_layers`` as PNG files: attention diversity, token similarity, tokens, time.

    Returns:
        Paths of the files, in ``folder``.
    """
    paths = []
    for name, (title, below, beside, quantities) in FIGURES.items():
        figure = Figure(figsize=(6.4, 3.6), layout='constrained')
        axes = figure.add_subplot()
        lines = {
            reduction: [
                value for layer in zip(*(result['layers'][quantity] for quantity in quantities)) for value in layer
            ]
            for reduction, result in results.items()
        }
        _draw(axes, lines, 1 / len(quantities))
        axes.set(title=title, xlabel=below, ylabel=beside)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if name in ('tokens', 'time'):
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        figure.legend(loc='outside right upper', fontsize='small', handlelength=3)
        paths.append(Path(folder) / f'{name}.png')
        figure.savefig(paths[-1], dpi=120)
    return paths


def _draw(axes, lines, step):
    """Draw lines of equally many points, ``step`` apart; where some coincide, their dashes alternate."""
    styles = dict(zip(lines, zip(cycle(COLORS), cycle(MARKERS))))
    for name, (color, marker) in styles.items():
        axes.plot([], [], color=color, marker=marker, linewidth=1.6, markersize=5, label=name)
    known = [value for values in lines.values() for value in values if not math.isnan(value)]
    tolerance = SAME * (max(known) - min(known)) if known else 0
    for i in range(max(map(len, lines.values()))):
        for length in (1, 2):  # points, then segments between two points
            ends = {name: values[i : i + length] for name, values in lines.items() if len(values) >= i + length}
            for group in _coinciding(ends, tolerance):
                for k, name in enumerate(group):
                    turn = (k + i) % len(group)  # a segment may be too short for a dash of each line
                    color, marker = styles[name]
                    if length == 2:
                        dashes = (-turn * DASH, (DASH, (len(group) - 1) * DASH)) if len(group) > 1 else '-'
                        axes.plot([i * step, (i + 1) * step], ends[name], color=color, linewidth=1.6, linestyle=dashes)
                    elif turn == 0:
                        axes.plot(i * step, ends[name], color=color, marker=marker, markersize=5, zorder=3)


def _coinciding(ends, tolerance):
    """Group names whose values are within ``tolerance`` of those of the first name of the group."""
    groups = []
    for name, values in ends.items():
        group = next((g for g in groups if all(abs(a - b) <= tolerance for a, b in zip(ends[g[0]], values))), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return groups
