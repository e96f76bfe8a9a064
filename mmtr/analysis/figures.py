"""Measures by layer as figures, one line a reduction."""
from itertools import cycle
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# Okabe and Ito's colours, which the colour-blind tell apart; lines differ in marker and dash too, for print.
COLORS = ('#000000', '#D55E00', '#0072B2', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#999999', '#7F3C8D')
MARKERS = ('o', 's', '^', 'D', 'v', 'P', 'X', '*', '<', '>', 'p')
DASHES = ('-', '--', ':', '-.')

#: File name -> title, labels of the axes, quantities (drawn one after the other within a layer).
FIGURES = dict(
    attention_diversity=('Attention diversity', 'layer', '1 - mean cosine similarity\nof attention maps',
                         ['attention_diversity']),
    token_similarity=('Token similarity', 'layer', 'mean cosine similarity\nof patch tokens', ['token_similarity']),
    tokens=('Patch tokens', 'layer (its attention; half a step later its FFN)', 'patch tokens',
            ['attention_tokens', 'ffn_tokens']),
    time=('Time', 'layer', 'ms/image', ['ms']))


def draw_layers(results: dict[str, dict], folder: Path) -> list[Path]:
    """Draw results of ``analyze_layers`` as PNG files: attention diversity, token similarity, tokens, time.

    Returns:
        The files, in ``folder``.
    """
    paths = []
    for name, (title, below, beside, quantities) in FIGURES.items():
        figure = Figure(figsize=(6.4, 3.6), layout='constrained')
        axes = figure.add_subplot()
        styles = zip(cycle(COLORS), cycle(MARKERS), cycle(DASHES))
        for (reduction, result), (color, marker, dash) in zip(results.items(), styles):
            series = [result['layers'][quantity] for quantity in quantities]
            points = [(i + k / len(series), value) for i, layer in enumerate(zip(*series))
                      for k, value in enumerate(layer)]
            axes.plot(*zip(*points), color=color, marker=marker, linestyle=dash, label=reduction, linewidth=1.4,
                      markersize=5, markerfacecolor='none')  # hollow, so that points that coincide are seen
        axes.set(title=title, xlabel=below, ylabel=beside)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if name in ('tokens', 'time'):
            axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
        figure.legend(loc='outside right upper', fontsize='small', handlelength=3)
        paths.append(Path(folder) / f'{name}.png')
        figure.savefig(paths[-1], dpi=120)
    return paths
