# What docs/benchmarks.md compares on the demo's model of 10 layers.
PAPER = dict(score='max', restore='copy')


def _each(start, ratio):
    common = dict(layers=(start, 10), ratio=ratio)
    return {
        f'TokenAdapter ({start}, 10) {ratio}': dict(type='TokenAdapter', **common),
        f'TokenAdapter, paper ({start}, 10) {ratio}': dict(type='TokenAdapter', **common, **PAPER),
        f'GridPool ({start}, 10) {ratio}': dict(type='GridPool', **common),
        f'GridPool, copy ({start}, 10) {ratio}': dict(type='GridPool', restore='copy', **common),
    }


reductions = {**_each(4, 0.3), **_each(4, 0.5), **_each(2, 0.5)}
