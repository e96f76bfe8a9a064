"""Comparing a backbone with its stock class in double precision, in which no mistake hides in rounding."""

import torch

from . import test_pyramid

#: What float32 promises is tested for every host by the contract.
CLOSE = dict(atol=1e-10, rtol=1e-8)


def images(*size):
    return test_pyramid.images(*size).double()


def pair_of(stock, host, settings):
    """A stock backbone with weights that matter, and ours with the same."""
    theirs, ours = test_pyramid.filled(stock(**settings)).double(), host(**settings).double()
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert [name for name, _ in ours.named_buffers()] == [name for name, _ in theirs.named_buffers()]
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return theirs.eval(), ours.eval()


def assert_alike(outs, expected):
    assert type(outs) is type(expected) and len(outs) == len(expected) > 0
    for out, same in zip(outs, expected):
        torch.testing.assert_close(out, same, **CLOSE)
        assert out.stride() == same.stride()
