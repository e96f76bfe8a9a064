"""Labels and logits of ``mmtr.EncoderDecoder`` are those of mmseg's, bit by bit."""

import copy

import pytest
import torch
from torch import nn

from mmtr.models.segmentors import EncoderDecoder
from mmtr.models.segmentors.deferred import DeferredPixelData

from .segmentors import both, logits_of, samples


def bits(x):
    """Of floating point numbers, so that 0 and -0 differ and NaN does not differ from itself."""
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def check(models, inputs, given=None, deferred=True):
    """Both predict the same labels, and the same logits once they are read."""
    with torch.no_grad():
        stock, ours = (model.predict(inputs, copy.deepcopy(given)) for model in models)
    assert len(ours) == len(stock) == len(inputs)
    for one, other in zip(stock, ours):
        assert isinstance(other.seg_logits, DeferredPixelData) == deferred
        assert other.pred_sem_seg.data.dtype == one.pred_sem_seg.data.dtype
        assert torch.equal(other.pred_sem_seg.data, one.pred_sem_seg.data)
        if one.seg_logits.data.isfinite().all():
            assert torch.equal(bits(other.seg_logits.data), bits(one.seg_logits.data))
        else:
            torch.testing.assert_close(other.seg_logits.data, one.seg_logits.data, rtol=0, atol=0, equal_nan=True)
    return ours


KINDS = (
    'random',
    'ties',
    'ulps',
    'constant',
    'one ulp above',
    'second everywhere, rows',
    'second everywhere, columns',
    'smooth',
)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('align_corners', (False, True))
def test_labels_and_logits_are_stocks(kind, align_corners):
    # (low) -> size of the input, size of the original: as it is, enlarged, made smaller, both ways, odd ones
    sizes = [
        ((5, 7), (80, 112), (80, 112)),
        ((5, 7), (77, 109), (131, 203)),
        ((6, 6), (96, 97), (70, 61)),
        ((90, 40), (70, 61), (150, 200)),
        ((70, 64), (70, 64), (70, 64)),
        ((3, 1), (140, 1), (140, 2)),
    ]
    for seed, (low, size, original) in enumerate(sizes):
        for classes in (2, 5, 21, 150):
            logits = logits_of(kind, (2, classes, *low), seed)
            models = both(lambda x, logits=logits: logits, classes, align_corners)
            check(models, torch.rand(2, 3, *size), samples(2, size, original))


@pytest.mark.parametrize(
    'meta',
    [
        dict(flip=True, flip_direction='horizontal'),
        dict(flip=True, flip_direction='vertical'),
        dict(padding_size=[3, 5, 0, 7]),
        dict(img_padding_size=[0, 12, 0, 20], padding_size=[9, 9, 9, 9]),
    ],
)
@pytest.mark.parametrize('original', ((80, 112), (70, 61)))
def test_padding_and_flips_are_undone_as_stock(meta, original):
    models = both(lambda x: logits_of('ties', (1, 5, 5, 7), 0))
    check(models, torch.rand(1, 3, 80, 112), samples(1, (80, 112), original, **meta))


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('image', ((64, 96), (96, 160), (50, 130)))
def test_sliding_windows_are_summed_up_as_stock(kind, image):
    def say(x):
        spread = nn.functional.adaptive_avg_pool2d(x, 4).sum((1, 2, 3))
        return logits_of(kind, (len(x), 7, 5, 6), int(1e4 * spread[0]) % 1000)

    models = both(say, 7, test_cfg=dict(mode='slide', crop_size=(64, 96), stride=(40, 50)))
    check(models, torch.rand(2, 3, *image), samples(2, image, (110, 170)))
    check(models, torch.rand(1, 3, *image))


@pytest.mark.parametrize('value', (float('nan'), float('inf'), float('-inf'), 3e38))
@pytest.mark.parametrize('original', ((80, 112), (90, 100)))
def test_what_is_not_finite_or_nearly_so_is_as_stock(value, original):
    logits = logits_of('ties', (1, 5, 5, 7), 0)
    logits[0, 2, 1:3, 2], logits[0, 3, 2, 2] = value, value
    check(both(lambda x: logits), torch.rand(1, 3, 80, 112), samples(1, (80, 112), original))


@pytest.mark.parametrize('dtype', (torch.bfloat16, torch.float16, torch.float64))
@pytest.mark.parametrize('kind', KINDS)
def test_other_dtypes(dtype, kind):
    models = both(lambda x: logits_of(kind, (len(x), 5, 5, 7), 0).to(dtype))
    check(models, torch.rand(1, 3, 80, 112), samples(1, (80, 112), (75, 90)))
    slide = both(models[0].decode_head.say, test_cfg=dict(mode='slide', crop_size=(60, 90), stride=(40, 50)))
    for inputs in (torch.rand(1, 3, 80, 112), torch.rand(1, 3, 60, 90), torch.rand(1, 3, 60, 90).to(dtype)):
        check(slide, inputs)


def test_autocast_gives_the_logits_that_it_gives_stock_also_when_they_are_read_later():
    models = both(lambda x: logits_of('random', (1, 5, 5, 7), 0).bfloat16())
    with torch.autocast('cpu', torch.bfloat16), torch.no_grad():
        stock, ours = (model.predict(torch.rand(1, 3, 80, 112), samples(1, (80, 112), (75, 90)))[0] for model in models)
        assert torch.equal(ours.pred_sem_seg.data, stock.pred_sem_seg.data)
    assert ours.seg_logits.data.dtype == stock.seg_logits.data.dtype
    assert torch.equal(ours.seg_logits.data, stock.seg_logits.data)


@pytest.mark.parametrize('threads', (1, 2, 5))
def test_any_number_of_threads(threads):
    torch.set_num_threads(threads)
    try:
        check(
            both(lambda x: logits_of('ulps', (1, 21, 23, 31), 0), 21),
            torch.rand(1, 3, 365, 491),
            samples(1, (365, 491)),
        )
    finally:
        torch.set_num_threads(1)


def test_what_is_small_or_channels_last_is_resized_at_once():
    # torch has other kernels for these, whose last bits depend on how many channels there are.
    check(both(lambda x: logits_of('ulps', (2, 5, 5, 7), 0)), torch.rand(2, 3, 40, 48), samples(2, (40, 48)), False)
    check(
        both(lambda x: logits_of('ulps', (2, 5, 5, 7), 0)),
        torch.rand(2, 3, 80, 112),
        samples(2, (80, 112), (40, 48)),
        False,
    )
    check(
        both(lambda x: logits_of('ulps', (2, 5, 5, 7), 0).contiguous(memory_format=torch.channels_last)),
        torch.rand(2, 3, 80, 112),
        samples(2, (80, 112)),
        False,
    )


def test_one_channel_and_a_threshold():
    models = both(lambda x: logits_of('random', (1, 1, 5, 7), 0), 2, out_channels=1, threshold=0.4)
    check(models, torch.rand(1, 3, 80, 112), samples(1, (80, 112)), False)


def test_without_samples_and_with_images_of_different_sizes():
    models = both(lambda x: logits_of('random', (len(x), 5, 5, 7), 0))
    check(models, torch.rand(2, 3, 80, 112))
    given = samples(1, (80, 112), (90, 120)) + samples(1, (80, 112), (100, 130))
    check(models, torch.rand(2, 3, 80, 112), given, False)


def test_what_a_subclass_or_a_head_does_in_its_own_is_done():
    class Doubled(EncoderDecoder):
        def encode_decode(self, inputs, batch_img_metas):
            return -super().encode_decode(inputs, batch_img_metas)

    def say(x):
        return logits_of('random', (1, 5, 5, 7), 0)

    plain, ours = both(say)
    ours.__class__ = Doubled
    with torch.no_grad():
        given = samples(1, (80, 112))
        turned = ours.predict(torch.rand(1, 3, 80, 112), copy.deepcopy(given))[0]
        kept = plain.predict(torch.rand(1, 3, 80, 112), copy.deepcopy(given))[0]
    assert torch.equal(turned.seg_logits.data, -kept.seg_logits.data)
    models = both(say)
    for model in models:
        predict = model.decode_head.predict
        model.decode_head.predict = lambda *args, predict=predict: -predict(*args)
    check(models, torch.rand(1, 3, 80, 112), samples(1, (80, 112)), False)


def test_with_gradients_the_logits_have_them():
    weight = torch.ones(1, requires_grad=True)
    _, ours = both(lambda x: weight * logits_of('random', (1, 5, 5, 7), 0))
    ours.predict(torch.rand(1, 3, 80, 112), samples(1, (80, 112)))[0].seg_logits.data.sum().backward()
    assert weight.grad.abs().item() > 0
