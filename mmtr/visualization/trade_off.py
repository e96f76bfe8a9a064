"""Accuracy against speed of many reductions, as a figure for print."""
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

#: One colour and one marker a method: told apart in grey as well. Okabe and Ito's colours, then darker ones.
COLORS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#7F4F24', '#5B3A9E', '#8A8D00')
MARKERS = 'osD^vPXhp'
# Where a label may stand beside its point, in points: the first place that is free.
PLACES = ((5, 3), (5, -3), (-5, 3), (-5, -3), (0, 6), (0, -6))


def pareto_front(points: dict[str, tuple[float, float]]) -> list[str]:
    """Names of the points (speed, accuracy) that no other one beats in both, the fastest first."""
    front, best = [], float('-inf')
    for name, (_, accuracy) in sorted(points.items(), key=lambda item: (-item[1][0], -item[1][1])):
        if accuracy > best:
            front.append(name)
            best = accuracy
    return front


def draw_trade_off(results: dict[str, dict], metric: str, paths, title: str = '') -> None:
    """Draw ``metric`` against images/s: a colour and marker a method, the Pareto front a line, plain a star.

    Args:
        results: Of ``mmtr.analysis.compare.compare_on_test_data``.
        metric: One of their metrics.
        paths: Files to write; the suffixes say which formats.
        title: Above it.
    """
    points = {name: (1e3 / r['total_ms'], r['metrics'][metric]) for name, r in results.items()}
    figure = Figure(figsize=(7, 4.6), dpi=200, layout='constrained')
    axes = figure.add_subplot(xlabel='images/s', ylabel=metric, title=title)
    axes.title.set_fontsize(9)
    axes.grid(color='0.9')
    axes.set_axisbelow(True)
    methods = {name: (r['token_reduction'] or {}).get('type', 'plain') for name, r in results.items()}
    reducing = [method for method in dict.fromkeys(methods.values()) if method != 'plain']
    front = pareto_front(points)
    axes.plot(*zip(*(points[name] for name in front)), color='0.35', lw=1, ls='--', zorder=1, label='Pareto front')
    for number, method in enumerate(reducing):
        of_method = [points[name] for name in points if methods[name] == method]
        axes.scatter(*zip(*of_method), s=30, color=COLORS[number % len(COLORS)], edgecolors='black', linewidths=0.5,
                     marker=MARKERS[number % len(MARKERS)], label=method, zorder=3)
    plain = [points[name] for name in points if methods[name] == 'plain']
    if plain:
        axes.scatter(*zip(*plain), s=130, marker='*', color='black', label='plain', zorder=4)
    axes.margins(0.08)
    figure.legend(fontsize=7, loc='outside right upper')
    labels = {name: name.removeprefix(methods[name]).strip(' ,') or name for name in points}
    order = [*front, *(name for name in points if name not in front)]
    _label(figure, axes, points, labels, [name for name in order if methods[name] != 'plain'])
    for path in paths:
        figure.savefig(path)


def _label(figure, axes, points, labels, order):
    """Write the labels that find a free place, in the order of ``order``."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    figure.set_layout_engine('none')  # nothing moves from here on
    taken = []
    marks = [axes.transData.transform(point) for point in points.values()]
    for name in order:
        for dx, dy in PLACES:
            text = axes.annotate(
                labels[name], points[name], (dx, dy), textcoords='offset points', fontsize=6, zorder=5,
                ha='left' if dx > 0 else 'right' if dx < 0 else 'center',
                va='center' if dx else 'bottom' if dy > 0 else 'top')
            box = text.get_window_extent(renderer)
            inside = axes.bbox.contains(box.x0, box.y0) and axes.bbox.contains(box.x1, box.y1)
            if inside and not any(box.overlaps(other) for other in taken) and not any(
                    box.padded(8).contains(*mark) for mark in marks):
                taken.append(box)
                break
            text.remove()
