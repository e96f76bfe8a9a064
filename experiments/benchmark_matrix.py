"""Run tools/benchmark.py with several dtypes and batch sizes in one process, which builds the models once.

Example, which writes results/vit/bfloat16_batch8.json and float32_batch1.json; a file that is there is not measured
again:

    python experiments/benchmark_matrix.py results/vit bfloat16:8:20 float32:1:10 -- configs/x.py --shape 640 640

A run is DTYPE:BATCH_SIZE:REPEATS. One that fails, for want of memory say, does not stop the others.
"""

import functools
import sys
from importlib import util
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]


def load_benchmark():
    """Load tools/benchmark.py, in a form that builds models, and counts multiply-adds of an image, once."""
    spec = util.spec_from_file_location('benchmark', ROOT / 'tools/benchmark.py')
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.build_all = once(module.build_all, lambda args, specs, configs: args.device)
    module.count_flops = once(module.count_flops, lambda model, image: (id(model), float(image.double().sum())))
    return module


def once(function, key):
    """Call ``function`` once for each ``key`` of its arguments."""
    found = {}

    @functools.wraps(function)
    def call(*args):
        at = key(*args)
        if at not in found:
            found[at] = function(*args)
        return found[at]

    return call


def main():
    """Run the matrix; the exit status is 1 if a run failed."""
    separator = sys.argv.index('--')
    (out, *runs), options = sys.argv[1:separator], sys.argv[separator + 1 :]
    benchmark, failed = load_benchmark(), []
    Path(out).mkdir(parents=True, exist_ok=True)
    for run in runs:
        dtype, batch, repeats = run.split(':')
        path = Path(out, f'{dtype}_batch{batch}.json')
        if path.exists():
            continue
        argv = ['--dtype', dtype, '--batch-size', batch, '--repeats', repeats, '--json', str(path)]
        sys.argv = ['tools/benchmark.py', *options, *argv]
        try:
            benchmark.main()
        except (SystemExit, RuntimeError) as error:
            if getattr(error, 'code', None) == 130:  # Ctrl-C, or the time limit of docs/results/gpu.sh
                raise
            failed.append(f'{run}: {type(error).__name__}: {error}')
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    print(*failed, sep='\n', file=sys.stderr)
    return bool(failed)


if __name__ == '__main__':
    sys.exit(main())
