# What docs/benchmarks.md compares on CamVid at 720x540.
def _each(start, ratio):
    common = dict(layers=(start, 12), ratio=ratio)
    return {
        f'TokenAdapter ({start}, 12) {ratio}': dict(type='TokenAdapter', **common),
        f'TokenAdapter, paper ({start}, 12) {ratio}': dict(type='TokenAdapter', score='max', restore='copy', **common),
        f'GridPool ({start}, 12) {ratio}': dict(type='GridPool', **common),
    }


reductions = {**_each(5, 0.3), **_each(5, 0.5), **_each(2, 0.5)}
