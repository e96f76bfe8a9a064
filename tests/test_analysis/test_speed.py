import time

import pytest
import torch

from mmtr.analysis.speed import Timing, interleave, machine, peak_memory, share


def test_interleave_calls_each_once_a_round_and_drops_the_warm_up():
    calls, rounds = [], []
    callables = {name: lambda name=name: calls.append(name) for name in 'abc'}
    timings = interleave(callables, repeats=8, warmup=2, progress=lambda done, of: rounds.append((done, of)))
    in_rounds = [calls[i : i + 3] for i in range(0, len(calls), 3)]
    assert len(in_rounds) == 10
    assert all(sorted(order) == ['a', 'b', 'c'] for order in in_rounds)
    assert len({tuple(order) for order in in_rounds}) > 1
    assert list(timings) == ['a', 'b', 'c']
    assert all(len(timing.seconds) == 8 for timing in timings.values())
    assert rounds == [(i, 10) for i in range(1, 11)]


def test_timing_gives_median_and_quartiles():
    timing = Timing([5.0, 1.0, 2.0, 4.0, 3.0])
    assert timing.median == 3
    assert timing.quartiles == (2, 4)
    assert Timing([2.0]).quartiles == (2, 2)


class Worker:
    def __init__(self, clock):
        self.clock = clock

    def outer(self):
        self.clock.now += 1
        self.inner()

    def inner(self):
        self.clock.now += 2

    def other(self):
        self.clock.now += 7


def test_share_counts_nested_methods_once_and_unwraps(monkeypatch):
    class Clock:
        now = 0.0

    monkeypatch.setattr(time, 'perf_counter', lambda: Clock.now)
    worker = Worker(Clock)
    assert share(lambda: (worker.outer(), worker.other()), worker, ['outer', 'inner']) == pytest.approx(0.3)
    assert set(vars(worker)) == {'clock'}


def test_share_unwraps_after_an_error():
    worker = Worker(None)
    with pytest.raises(AttributeError):
        share(worker.outer, worker, ['outer'])
    assert set(vars(worker)) == {'clock'}


def test_peak_memory_of_a_chain_is_its_largest_moment():
    x = torch.randn(1000)

    def chain():
        a = torch.relu(x)  # 4000 bytes
        b = torch.relu(a)  # 8000
        del a
        c = torch.cat([b, b, b])  # 4000 + 12000, the peak
        del b
        return torch.relu(c[:10])

    assert peak_memory(chain) == 16000
    assert peak_memory(chain) == 16000


def test_peak_memory_leaves_out_weights_and_inputs():
    model, x = torch.nn.Linear(256, 512), torch.randn(8, 256)
    with torch.inference_mode():
        assert peak_memory(lambda: model(x)) == 8 * 512 * 4


def test_peak_memory_sees_the_attention_matrix():
    q = torch.randn(1, 2, 256, 16)
    with torch.inference_mode():
        plain = peak_memory(lambda: (q @ q.transpose(-2, -1)).softmax(-1) @ q)
        fused = peak_memory(lambda: torch.nn.functional.scaled_dot_product_attention(q, q, q))
    assert plain >= 2 * 2 * 256 * 256 * 4  # products and their softmax
    assert fused < plain


def test_machine_says_what_timings_depend_on():
    found = machine()
    assert found['cpu'] and found['cores'] >= 1
    assert found['threads'] == torch.get_num_threads()
    assert found['torch'] == torch.__version__
