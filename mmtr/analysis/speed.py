"""Measure time and memory of forward passes, in turns on one machine."""

import functools
import gc
import os
import platform
import random
import time
from collections.abc import Hashable, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Callable, Optional

import torch
from torch.profiler import ProfilerActivity, profile


@dataclass(frozen=True)
class Timing:
    """Durations of repeated calls, in seconds, in the order they were taken."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median duration in seconds."""
        return median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the durations, in seconds."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        low, _, high = quantiles(self.seconds, n=4, method='inclusive')
        return low, high


def now() -> float:
    """Return the time in seconds, after all kernels on the GPU have run."""
    # A CUDA call returns before its kernels have run.
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def interleave(
    callables: dict[Hashable, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    progress: Optional[Callable[[int, int], None]] = None,
) -> dict[Hashable, Timing]:
    """Time callables in turns, so that a drift of the machine's speed affects all alike.

    Each round calls every callable once, in a shuffled order (seeded).

    Args:
        callables: Name -> callable to time.
        repeats: Number of timed rounds.
        warmup: Number of rounds before them that are not timed.
        progress: Called with (rounds done, rounds in all) after each round, warm-up included.

    Returns:
        Name -> durations.
    """
    seconds = {name: [] for name in callables}
    order, shuffle = list(callables), random.Random(0).shuffle
    for done in range(warmup + repeats):
        shuffle(order)
        for name in order:
            start = now()
            callables[name]()
            took = now() - start
            if done >= warmup:
                seconds[name].append(took)
        if progress is not None:
            progress(done + 1, warmup + repeats)
    return {name: Timing(values) for name, values in seconds.items()}


@contextmanager
def _timed(owner, names):
    spent, depth = [0.0], [0]

    def timed(method):
        @functools.wraps(method)
        def run(*args, **kwargs):
            # Time is counted once where one of these methods calls another.
            depth[0] += 1
            start = now()
            try:
                return method(*args, **kwargs)
            finally:
                depth[0] -= 1
                if depth[0] == 0:
                    spent[0] += now() - start

        return run

    for name in names:
        setattr(owner, name, timed(getattr(owner, name)))
    try:
        yield spent
    finally:
        for name in names:
            delattr(owner, name)


def share(call: Callable[[], object], owner: object, names: Iterable[str], repeats: int = 5) -> float:
    """Measure the share of the time of ``call()``, 0 to 1, that some methods of ``owner`` take.

    Args:
        call: Calls these methods.
        owner: The instance. Its methods are wrapped during the measurement. On a GPU each of them then waits for the
            queue, so these calls are slower than usual.
        names: Names of the methods.
        repeats: Number of calls; the result is their median.
    """
    shares = []
    for _ in range(repeats):
        with _timed(owner, names) as spent:
            start = now()
            call()
            shares.append(spent[0] / (now() - start))
    return median(shares)


def peak_memory(call: Callable[[], object], device: str = 'cpu') -> int:
    """Measure the peak memory of ``call()`` in bytes, beyond what was allocated before it (weights, inputs).

    torch's allocator counts it: temporary tensors inside an operator are included, and memory that a library such
    as oneDNN or cuBLAS allocates for itself is not.

    Args:
        call: Called twice; the first call fills the caches of libraries.
        device: Device of the tensors, ``cpu`` or a CUDA device.
    """
    call()
    gc.collect()
    if torch.device(device).type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    # The profiler reads this when it starts; otherwise it logs to stderr.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == '[memory]']
    held = peak = 0
    # torch 2.1 counts in microseconds; the sort keeps the order of events in the same microsecond.
    for event in sorted(events, key=lambda e: (e.start_ns if hasattr(e, 'start_ns') else e.start_us)()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def machine(device: str = 'cpu') -> dict:
    """Describe the machine of a measurement: processor, cores, threads, operating system, Python, torch, GPU."""
    found = dict(
        cpu=_cpu_name(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count(),
        threads=torch.get_num_threads(),
        system=platform.platform(),
        python=platform.python_version(),
        torch=torch.__version__,
    )
    if torch.device(device).type == 'cuda':
        found.update(gpu=torch.cuda.get_device_name(device), cuda=torch.version.cuda)
    return found


def _cpu_name():
    try:
        with open('/proc/cpuinfo') as file:
            return next(line.split(':')[1].strip() for line in file if line.startswith('model name'))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
