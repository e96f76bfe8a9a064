"""Draw accuracy against speed-up of many reductions, as a figure for print."""

from collections.abc import Iterable
from pathlib import Path
from typing import Optional, Union

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.markers import CARETDOWN
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter

from mmtr.analysis.trade_offs import front_beyond_plain, pareto_front, trade_offs

#: One colour and one marker a method, so that they can be told apart in grey too: Okabe and Ito's colours, then darker
#: ones.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7F4F24', '#5B3A9E', '#8A8D00')
MARKERS = 'osD^vPXhp'
# Keeps labels readable where they cross lines.
HALO = [withStroke(linewidth=1.5, foreground='white')]
# Offsets of a label from its point, in points (1/72 inch): the first free place is used.
PLACES = ((5, 3), (5, -3), (-5, 3), (-5, -3), (0, 6), (0, -6))


def method_of(reduction: Optional[dict]) -> str:
    """Name the method of a ``token_reduction``: its type and those settings that are text; numbers are its strength."""
    reduction = reduction or dict(type='plain')
    words = (value for key, value in reduction.items() if key != 'type' and isinstance(value, str))
    return ' '.join([str(reduction['type']).removeprefix('mmtr.'), *words])


def lower_limit(values: list[float]) -> float:
    """Choose the lower limit of an axis for ``values``, so that outliers far below do not squeeze the others."""
    low, high = np.quantile(values, (0.25, 0.75))
    return max(min(values), low - 1.5 * (high - low))


def draw_trade_off(results: dict[str, dict], metric: str, paths: Iterable[Union[str, Path]], title: str = '') -> None:
    """Draw ``metric`` against the speed-up of the whole test step: a line a method, plain as a star, the front in grey.

    The line of a method joins its settings that none of its other settings beats. Values far below all others are
    drawn at the lower edge, with their number.

    Args:
        results: Results of ``mmtr.analysis.compare.compare_on_test_data``, plain first.
        metric: One of their metrics.
        paths: Files to write; their suffixes give the formats.
        title: Title of the figure.
    """
    points, (plain, *others) = trade_offs(results, metric), results
    front = front_beyond_plain(points)
    bottom = lower_limit([accuracy for _, accuracy in points.values()])
    below = {name: accuracy for name, (_, accuracy) in points.items() if accuracy < bottom}
    shown = {name: (speed_up, max(accuracy, bottom)) for name, (speed_up, accuracy) in points.items()}
    figure = Figure(figsize=(7.6, 4.8), dpi=200, layout='constrained')
    axes = figure.add_subplot(xlabel='speed-up against plain, whole test step', ylabel=metric, title=title)
    axes.title.set_fontsize(9)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f'{x:g}x'))
    axes.grid(color='0.92')
    axes.set_axisbelow(True)
    for line, value in zip((axes.axvline, axes.axhline), points[plain]):
        line(value, color='0.55', lw=0.8, ls=':', zorder=1)
    axes.scatter(*points[plain], s=130, marker='*', color='black', label=plain, zorder=5)
    methods = {name: method_of(results[name]['token_reduction']) for name in others}
    for number, method in enumerate(dict.fromkeys(methods.values())):
        # When colours repeat, the markers are shifted by one.
        marker = MARKERS[(number + number // len(COLORS)) % len(MARKERS)]
        style = dict(color=COLORS[number % len(COLORS)], markersize=5.5, markeredgecolor='black', markeredgewidth=0.5)
        own = {name: points[name] for name in others if methods[name] == method}
        axes.plot([], [], marker=marker, lw=1.2, label=method, **style)
        axes.plot(*zip(*(own[name] for name in pareto_front(own))), color=style['color'], lw=1.2, zorder=3)
        for name in own:
            axes.plot(*shown[name], marker=CARETDOWN if name in below else marker, zorder=4, clip_on=False, **style)
    if front:
        axes.plot(
            *zip(*(points[name] for name in front)),
            color='black',
            lw=3.5,
            alpha=0.18,
            zorder=2,
            solid_capstyle='round',
            label='front',
        )
    axes.margins(0.06)
    if below:
        top = max(accuracy for _, accuracy in points.values())
        axes.set_ylim(bottom, top + 0.06 * (top - bottom))
    figure.legend(fontsize=7, loc='outside right upper')
    labels = {
        name: name.removeprefix(methods[name]).removeprefix(methods[name].split()[0]).strip(' ,') or name
        for name in others
    }
    labels.update({name: f'{labels[name]}: {accuracy:.4g}' for name, accuracy in below.items()})
    _label(
        figure, axes, shown, {plain: plain, **labels}, [plain, *front, *(name for name in others if name not in front)]
    )
    for path in paths:
        figure.savefig(path)


def _label(figure, axes, points, labels, order):
    """Write labels in the given order, each at its first free place; labels without one are left out."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine('none')  # so that nothing moves from here on
    taken = []
    marks = [axes.transData.transform(point) for point in points.values()]
    for name in order:
        for dx, dy in PLACES:
            text = axes.annotate(
                labels[name],
                points[name],
                (dx, dy),
                textcoords='offset points',
                fontsize=6,
                zorder=6,
                path_effects=HALO,
                ha='left' if dx > 0 else 'right' if dx < 0 else 'center',
                va='center' if dx else 'bottom' if dy > 0 else 'top',
            )
            box = text.get_window_extent(renderer)
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if (
                inside
                and not any(box.overlaps(other) for other in taken)
                and not any(box.padded(8).contains(*mark) for mark in marks)
            ):
                taken.append(box)
                break
            text.remove()
