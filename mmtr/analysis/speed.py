"""Time and memory of forward passes, compared fairly on one machine."""

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
        """In seconds."""
        return median(self.seconds)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The middle half of all durations lies between these two, in seconds."""
        if len(self.seconds) == 1:
            return self.seconds[0], self.seconds[0]
        low, _, high = quantiles(self.seconds, n=4, method='inclusive')
        return low, high


def now() -> float:
    """Seconds of a clock, once all that was asked of the GPU is done."""
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
    """Time callables in turns, so that a drift of the machine's speed meets all of them alike.

    Each round calls every one of them once, in an order that is shuffled anew (seeded).

    Args:
        callables: What to time, by name.
        repeats: Rounds that are timed.
        warmup: Rounds before them that are not.
        progress: Called with (rounds done, rounds in all) after each round, warm-up included.
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
            # A method that calls another one of them is counted once.
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
    """The part of ``call()``'s time, 0 to 1, that some methods of ``owner`` take; median of ``repeats``.

    Args:
        call: Calls these methods somewhere inside.
        owner: The instance. Its methods are wrapped meanwhile, which stops a GPU's queue at each
            of them, so such calls are not to be reported as a speed.
        names: Of its methods.
    """
    shares = []
    for _ in range(repeats):
        with _timed(owner, names) as spent:
            start = now()
            call()
            shares.append(spent[0] / (now() - start))
    return median(shares)


def peak_memory(call: Callable[[], object], device: str = 'cpu') -> int:
    """Most bytes that ``call()`` holds at one time beyond what was held before it (weights, inputs).

    Counted by the allocator of torch, so temporary tensors inside an operator are included, and
    what a library such as oneDNN or cuBLAS allocates for itself is not.

    Args:
        call: Run twice; the first time warms up what libraries and caches keep.
        device: Where its tensors are, ``cpu`` or a CUDA device.
    """
    call()
    gc.collect()
    if torch.device(device).type == 'cuda':
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    # Read by the profiler when it starts: without it, it writes its stages to stderr.
    os.environ.setdefault('KINETO_LOG_LEVEL', '99')
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        call()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == '[memory]']
    held = peak = 0
    # torch 2.1 counts in microseconds; what falls into the same one stays in order.
    for event in sorted(events, key=lambda e: (e.start_ns if hasattr(e, 'start_ns') else e.start_us)()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def machine(device: str = 'cpu') -> dict:
    """What the measurements depend on: processor, cores, threads, operating system, torch, GPU."""
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
