"""From MaskDINO's predictions to results, against loops over queries, classes and pixels."""

import math

import pytest
import torch
import torch.nn.functional as F
from mmdet.evaluation.functional import INSTANCE_OFFSET
from mmdet.structures import DetDataSample

from mmtr import UserError
from mmtr.models.maskdino import MaskDINOFusionHead
from mmtr.models.maskdino.head import Prediction

THINGS, STUFF, QUERIES = 2, 2, 7
# Seen by the model in a padded image of 16x24, made from one of 30x40.
PADDED, SEEN, ORIGINAL = (16, 24), (15, 20), (30, 40)


def sample():
    return DetDataSample(metainfo=dict(batch_input_shape=PADDED, img_shape=SEEN, ori_shape=ORIGINAL))


def draw(seed=0, queries=QUERIES):
    g = torch.Generator().manual_seed(seed)
    # A blob for each query; many meet.
    rows, columns = torch.arange(8).view(-1, 1), torch.arange(12)
    centres, masks = torch.rand(queries, 2, generator=g) * torch.tensor((8, 10)), []
    for row, column in centres:
        masks.append(4 - ((rows - row) ** 2 + (columns - column) ** 2))
    masks = torch.stack(masks).unsqueeze(0) + torch.randn(1, queries, 8, 12, generator=g)
    return Prediction(
        torch.rand(1, queries, THINGS + STUFF, generator=g), torch.rand(1, queries, 4, generator=g), masks
    )


def head(things=THINGS, stuff=STUFF, **test_cfg):
    return MaskDINOFusionHead(things, stuff, test_cfg=test_cfg)


def enlarged(masks, shape=ORIGINAL):
    """Mask logits of the image: padding goes away before they are made as large as it."""
    masks = F.interpolate(masks, PADDED, mode='bilinear', align_corners=False)[..., : SEEN[0], : SEEN[1]]
    return F.interpolate(masks, shape, mode='bilinear', align_corners=False)[0]


@pytest.mark.parametrize('rescale, shape', [(True, ORIGINAL), (False, SEEN)])
def test_instances_are_the_best_pairs_of_query_and_thing(rescale, shape):
    prediction = draw()
    found = head(max_per_image=9).predict(prediction, [sample()], rescale)[0]['ins_results']
    scores, boxes, masks = prediction.scores[0], prediction.boxes[0], enlarged(prediction.masks, shape)
    pairs = sorted(((float(scores[q, k]), q, k) for q in range(QUERIES) for k in range(THINGS + STUFF)), reverse=True)
    expected = [(score, q, k) for score, q, k in pairs[:9] if k < THINGS]
    assert len(found) == len(expected) and 0 < len(expected) < 9
    for i, (score, q, k) in enumerate(expected):
        inside = masks[q] > 0
        mean = masks[q][inside].sigmoid().mean() if inside.any() else 0
        assert float(found.scores[i]) == pytest.approx(score * float(mean), rel=1e-4)
        assert found.labels[i] == k and torch.equal(found.masks[i], inside)
        x, y, width, height = boxes[q].tolist()
        scale = shape[0] / SEEN[0]
        limits = [shape[1], shape[0]] * 2
        corners = [
            (x - width / 2) * PADDED[1] * scale,
            (y - height / 2) * PADDED[0] * scale,
            (x + width / 2) * PADDED[1] * scale,
            (y + height / 2) * PADDED[0] * scale,
        ]
        corners = [min(max(value, 0), limit) for value, limit in zip(corners, limits)]
        assert found.bboxes[i].tolist() == pytest.approx(corners, rel=1e-4, abs=1e-3)


def test_a_mask_of_nothing_scores_nothing():
    prediction = draw()
    masks = prediction.masks.clone()
    masks[0, 2] = -3
    found = head().predict(prediction._replace(masks=masks), [sample()])[0]['ins_results']
    assert (found.scores == 0).sum() == THINGS and not found.masks[found.scores == 0].any()


def panoptic(prediction, threshold, overlap, temperature):
    """The map, pixel by pixel: label, and which query for things."""
    scores, masks = prediction.scores[0].tolist(), enlarged(prediction.masks).sigmoid()
    chosen = []
    for q in range(len(scores)):
        if max(scores[q]) > threshold:
            sharp = [math.exp(s / temperature) for s in scores[q]]
            label = scores[q].index(max(scores[q]))
            chosen.append((q, label, sharp[label] / sum(sharp)))
    owner = {}
    for row in range(ORIGINAL[0]):
        for column in range(ORIGINAL[1]):
            values = [(weight * float(masks[q, row, column]), -i) for i, (q, _, weight) in enumerate(chosen)]
            owner[row, column] = -max(values)[1] if values else None
    result = {}
    for i, (q, label, _) in enumerate(chosen):
        won = [pixel for pixel, winner in owner.items() if winner == i]
        own = int((masks[q] >= 0.5).sum())
        if not won or not own or len(won) / own < overlap:
            continue
        for row, column in won:
            if masks[q, row, column] >= 0.5:
                result[row, column] = (label, q if label < THINGS else None)
    return result


@pytest.mark.parametrize('seed', [0, 1, 2, 3])
def test_panoptic_map_is_merged_pixel_by_pixel(seed):
    prediction = draw(seed)
    scores = prediction.scores.clone()
    scores[0, 0] = 0.2  # below the threshold
    scores[0, 1:3] = torch.tensor([0.1, 0.1, 0.1, 0.8])  # two of one stuff
    prediction = prediction._replace(scores=scores)
    found = (
        head(panoptic_on=True, instance_on=False, iou_thr=0.4)
        .predict(prediction, [sample()])[0]['pan_results']
        .sem_seg[0]
    )
    expected = panoptic(prediction, 0.25, 0.4, 0.06)
    assert len({value for value in expected.values()}) > 2
    names = {}
    for row in range(ORIGINAL[0]):
        for column in range(ORIGINAL[1]):
            label, query = expected.get((row, column), (THINGS + STUFF, None))
            value = int(found[row, column])
            assert value % INSTANCE_OFFSET == label
            assert (value >= INSTANCE_OFFSET) == (label < THINGS)
            # One number for each thing, and no two with the same.
            assert names.setdefault(value, (label, query)) == (label, query)
    assert len(set(names.values())) == len(names)


def test_without_a_query_above_the_threshold_the_map_is_void():
    prediction = draw()
    found = (
        head(panoptic_on=True)
        .predict(prediction._replace(scores=prediction.scores * 0.2), [sample()])[0]['pan_results']
        .sem_seg
    )
    assert found.shape == (1, *ORIGINAL) and (found == THINGS + STUFF).all()


def classes_then_size(prediction):
    """The class of each pixel as the release's semantic models have it (MaskDINO.forward without
    SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE): sums on the padded image, cropped, then made as large as the original."""
    masks = F.interpolate(prediction.masks, PADDED, mode='bilinear', align_corners=False)[0].sigmoid()
    sums = torch.zeros(THINGS + STUFF, *PADDED)
    for mask, scores in zip(masks, prediction.scores[0]):
        for k, score in enumerate(scores):
            sums[k] += score * mask
    sums = F.interpolate(sums[None, :, : SEEN[0], : SEEN[1]], ORIGINAL, mode='bilinear', align_corners=False)
    return sums[0].argmax(0)


def test_sums_of_classes_are_enlarged_where_the_release_does_so():
    differing = 0
    for seed in range(6):
        prediction = draw(seed)
        kinds = []
        for enlarged in ('classes', 'masks'):
            fusion = head(0, 4, semantic_on=True, instance_on=False, temperature=None, enlarged=enlarged)
            kinds.append(fusion.predict(prediction, [sample()])[0]['sem_results'].sem_seg[0])
        assert torch.equal(kinds[0], classes_then_size(prediction))
        differing += int((kinds[0] != kinds[1]).sum())
    assert differing > 0
    with pytest.raises(UserError, match="test_cfg.enlarged='queries' must be one of masks, classes"):
        head(enlarged='queries')


@pytest.mark.parametrize('temperature', [0.06, 1.0, None])
def test_semantic_map_sums_class_times_mask_over_the_queries(temperature):
    prediction = draw(5)
    found = (
        head(things=0, stuff=4, semantic_on=True, instance_on=False, temperature=temperature)
        .predict(prediction, [sample()])[0]['sem_results']
        .sem_seg
    )
    masks, scores = enlarged(prediction.masks).sigmoid(), prediction.scores[0].tolist()
    if temperature:
        sharp = [[math.exp(s / temperature) for s in row] for row in scores]
        scores = [[s / sum(row) for s in row] for row in sharp]
    assert found.shape == (1, *ORIGINAL) and len(found.unique()) > 1
    for row in range(0, ORIGINAL[0], 3):
        for column in range(0, ORIGINAL[1], 3):
            sums = [sum(scores[q][k] * float(masks[q, row, column]) for q in range(QUERIES)) for k in range(4)]
            assert found[0, row, column] == sums.index(max(sums))


def test_a_panoptic_map_needs_a_temperature():
    with pytest.raises(UserError, match='panoptic_on=True needs a test_cfg.temperature'):
        head(panoptic_on=True, temperature=None)
