import pytest
import torch
import torch.nn.functional as F

from mmtr.ops.labels import can_be_largest, first_largest, independent_of_channels


@pytest.mark.parametrize('classes', (1, 2, 11, 150, 300))
@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16, torch.float64))
def test_first_largest_is_argmax(classes, dtype):
    torch.manual_seed(0)
    for x in (
        torch.randn(classes, 9, 7),
        torch.randint(-2, 2, (classes, 9, 7)),
        torch.full((classes, 3, 1), -0.0),
        torch.full((classes, 3, 2), float('-inf')),
    ):
        x = x.to(dtype)
        assert torch.equal(first_largest(enumerate(x), classes), x.argmax(0))


def test_first_largest_of_some_classes_has_their_numbers_and_changes_no_map():
    x = torch.randn(300, 9, 7, generator=torch.Generator().manual_seed(0))
    x[[0, 5, 299]] += 9
    before = x.clone()
    assert torch.equal(first_largest(((c, x[c]) for c in (0, 5, 299)), 300), x.argmax(0))
    assert torch.equal(x, before)


@pytest.mark.parametrize('reach', (2, 3))
def test_whatever_is_the_largest_in_a_mean_of_neighbours_can_be(reach):
    generator = torch.Generator().manual_seed(0)
    left_out = 0
    for _ in range(200):
        logits = F.interpolate(torch.randn(1, 8, 2, 2, generator=generator), (9, 8), mode='bicubic')[0]
        kept = can_be_largest(logits, reach).tolist()
        left_out += 8 - len(kept)
        places = logits.unfold(1, reach, 1).unfold(2, reach, 1).flatten(-2)
        weights = torch.rand(*places.shape[1:], 20, generator=generator).pow(8)
        means = torch.einsum('chwn,hwnk->chwk', places, weights / weights.sum(2, keepdim=True))
        assert set(means.argmax(0).unique().tolist()) | set(logits.argmax(0).unique().tolist()) <= set(kept)
    assert left_out > 20


def test_of_one_row_or_one_pixel_too():
    assert can_be_largest(torch.tensor([[[1.0, 0]], [[0, 1]], [[-1, -1]]]), 2).tolist() == [0, 1]
    assert can_be_largest(torch.tensor([[[1.0]], [[0]]]), 3).tolist() == [0]


@pytest.mark.parametrize('dtype', (torch.float32, torch.bfloat16))
def test_channels_that_are_independent_get_the_same_bits_alone(dtype):
    generator = torch.Generator().manual_seed(0)
    told = []
    for size in ((60, 70), (131, 40), (200, 190), (30, 30), (64, 64)):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = torch.randn(2, 7, 33, 21, generator=generator).to(dtype).contiguous(memory_format=layout)
            told.append(independent_of_channels(x, size))
            if told[-1]:
                full = F.interpolate(x, size, mode='bilinear', align_corners=False)
                for some in ([0], [1, 4], [0, 1, 2, 3, 4, 6]):
                    alone = F.interpolate(x[1:, some], size, mode='bilinear', align_corners=False)
                    assert torch.equal(alone, full[1:, some])
    assert told == [True, False, True, False, True, False, False, False, False, False]
