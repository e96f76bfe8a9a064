"""Where MaskDINO's decoder starts, and denoising: against loops over places, pixels and slots."""

import math

import pytest
import torch
from mmengine.structures import InstanceData

from mmtr.models.maskdino.decoder import refine
from mmtr.models.maskdino.denoising import Denoising, group_mask, noisy_boxes, noisy_labels
from mmtr.models.maskdino.queries import QuerySelection, boxes_of_masks, grid_proposals


def logit(p):
    return math.log(p / (1 - p))


def test_every_place_proposes_a_box_of_its_level_and_the_border_none():
    shapes = [(1, 2), (3, 60), (2, 2), (2, 2), (2, 2), (1, 1)]
    boxes, kept = grid_proposals(shapes)
    n = 0
    for level, (height, width) in enumerate(shapes):
        for row in range(height):
            for column in range(width):
                box = ((column + 0.5) / width, (row + 0.5) / height, 0.05 * 2**level, 0.05 * 2**level)
                good = all(0.01 < value < 0.99 for value in box)
                assert kept[0, n, 0] == good
                expected = torch.tensor([logit(value) for value in box] if good else [math.inf] * 4)
                torch.testing.assert_close(boxes[0, n], expected)
                n += 1
    assert n == boxes.shape[1] and not kept.all() and kept.any()


def test_the_places_with_the_best_class_become_queries_with_the_box_head_on_their_proposals():
    torch.manual_seed(0)
    shapes, channels = torch.tensor([(2, 3), (3, 5)]), 8
    selection = QuerySelection(channels, 4)
    classes, boxes = torch.nn.Linear(channels, 3), torch.nn.Linear(channels, 4)
    memory = torch.randn(2, 21, channels)
    chosen, found = selection(memory, shapes, classes, boxes)
    proposals, kept = grid_proposals(shapes.tolist())
    for image in range(2):
        rows = [selection.norm(selection.linear(x if good else x * 0)) for x, good in zip(memory[image], kept[0])]
        best = sorted(range(21), key=lambda n: -max(classes(rows[n]).tolist()))[:4]
        for place, n in enumerate(best):
            torch.testing.assert_close(chosen[image, place], rows[n])
            torch.testing.assert_close(found[image, place], boxes(rows[n]) + proposals[0, n])


def test_fewer_places_than_queries_give_fewer_queries():
    chosen, _ = QuerySelection(8, 300)(
        torch.randn(1, 6, 8), torch.tensor([(2, 3)]), torch.nn.Linear(8, 3), torch.nn.Linear(8, 4)
    )
    assert chosen.shape == (1, 6, 8)


@pytest.mark.parametrize('kind, last', [('bitmask', 1), ('mask2box', 0)])
def test_box_of_a_mask(kind, last):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 6, 5, 7, generator=generator) - 1.5
    logits[0, 0] = -1  # empty
    logits[0, 1] = -1
    logits[0, 1, 2, 3] = 1  # one pixel
    logits[1, 0] = 1  # everything
    boxes = boxes_of_masks(logits, kind).sigmoid()
    for image in range(2):
        for query in range(6):
            pixels = [(row, column) for row in range(5) for column in range(7) if logits[image, query, row, column] > 0]
            if pixels:
                top, bottom = min(p[0] for p in pixels) / 5, (max(p[0] for p in pixels) + last) / 5
                left, right = min(p[1] for p in pixels) / 7, (max(p[1] for p in pixels) + last) / 7
                expected = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
            else:
                expected = [0, 0, 0, 0] if last else [1, 1, 0, 0]
            torch.testing.assert_close(boxes[image, query], torch.tensor(expected).float(), rtol=0, atol=2e-5)


def test_a_box_is_refined_in_the_space_before_the_sigmoid():
    box, delta = torch.tensor([0.2, 0.9, 0.5, 0.01]), torch.tensor([0.5, -1.0, 0.0, 2.0])
    expected = [1 / (1 + math.exp(-(logit(float(b)) + float(d)))) for b, d in zip(box, delta)]
    torch.testing.assert_close(refine(box, delta), torch.tensor(expected))
    # At the end of the range it stays finite, so that a box can come back.
    assert refine(torch.tensor([0.0, 1.0]), torch.tensor([20.0, -20.0])).tolist() == pytest.approx([1, 0], abs=1e-3)


@pytest.mark.parametrize('groups, size, queries', [(1, 1, 2), (3, 2, 4), (2, 5, 3)])
def test_groups_do_not_see_each_other_and_queries_see_no_group(groups, size, queries):
    mask = group_mask(groups, size, queries)
    for row in range(groups * size + queries):
        for column in range(groups * size + queries):
            sees_truth = column < groups * size
            same = row < groups * size and row // size == column // size
            assert mask[row, column] == (sees_truth and not same), (row, column)


def test_noise_of_labels_draws_a_fifth_anew():
    torch.manual_seed(0)
    labels = torch.full((20000,), 3)
    noisy = noisy_labels(labels, 8, 0.4)
    assert (noisy != 3).float().mean().item() == pytest.approx(0.2 * 7 / 8, abs=0.01)
    assert set(noisy.tolist()) == set(range(8))
    assert torch.equal(noisy_labels(labels, 8, 0.0), labels)


def test_noise_of_boxes_is_a_share_of_their_size():
    torch.manual_seed(0)
    box = torch.tensor([0.5, 0.4, 0.2, 0.1])
    noisy = noisy_boxes(box.expand(5000, 4), 0.4)
    for i, most in enumerate((0.2 / 2, 0.1 / 2, 0.2, 0.1)):
        change = noisy[:, i] - box[i]
        assert change.abs().max() <= 0.4 * most + 1e-6
        assert change.abs().max() > 0.95 * 0.4 * most and abs(change.mean()) < 0.02 * most
    corner = noisy_boxes(torch.tensor([[0.01, 0.99, 0.9, 0.9]]).expand(500, 4), 1.0)
    assert corner.min() == 0 and corner.max() == 1


def image(*objects):
    labels, boxes = [label for label, _ in objects], [box for _, box in objects]
    return InstanceData(labels=torch.tensor(labels, dtype=torch.long), bboxes=torch.tensor(boxes).view(-1, 4))


def test_slots_are_shared_by_groups_of_the_ground_truth():
    first, second = (1, [0.5, 0.5, 0.25, 0.25]), (2, [0.25, 0.75, 0.5, 0.25])
    denoising = Denoising(4, 8, num_slots=7, noise=0.0)
    targets = [image(first, second, first), image(second), image()]
    noisy = denoising(targets, num_queries=5)
    assert noisy.num_groups == 2 and noisy.content.shape == (3, 6, 8)  # 7 slots hold 2 groups of 3
    torch.testing.assert_close(noisy.attn_mask, group_mask(2, 3, 5))
    for i, objects in enumerate([[first, second, first], [second], []]):
        found = {}
        for group in range(2):
            for j, (label, box) in enumerate(objects):
                slot = group * 3 + j
                found[slot] = j
                assert torch.equal(noisy.content[i, slot], denoising.label_embed.weight[label])
                torch.testing.assert_close(noisy.boxes[i, slot].sigmoid(), torch.tensor(box))
        assert dict(zip(*(indices.tolist() for indices in noisy.indices[i]))) == found
        empty = [slot for slot in range(6) if slot not in found]
        assert not noisy.content[i, empty].any() and not noisy.boxes[i, empty].any()


def test_without_objects_or_with_too_many_there_is_no_denoising():
    denoising = Denoising(4, 8, num_slots=2)
    assert denoising([image(), image()], 5) is None
    assert denoising([image(*[(1, [0.5] * 4)] * 3), image()], 5) is None
    assert denoising([image(*[(1, [0.5] * 4)] * 2), image()], 5).num_groups == 1
