"""Each measure against its paper's formula, written out pixel by pixel, through mmengine's evaluator."""

import math
import sys

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import PixelData
from mmseg.structures import SegDataSample

from mmtr import UserError
from mmtr.evaluation import BinaryMetric


def pixels(mask):
    return [(y, x) for y in range(mask.shape[0]) for x in range(mask.shape[1])]


def f_score(cut, mask, beta2=0.3):
    """F-measure (Achanta et al., CVPR 2009, eq. 6) of a cut map."""
    hits = sum(bool(cut[p] and mask[p]) for p in pixels(mask))
    if not hits:
        return 0.0
    precision, recall = hits / sum(bool(cut[p]) for p in pixels(mask)), hits / sum(bool(mask[p]) for p in pixels(mask))
    return (1 + beta2) * precision * recall / (beta2 * precision + recall)


def e_score(cut, mask):
    """E-measure (Fan et al., IJCAI 2018, eq. 2 to 5) of a cut map, divided by one pixel less as their code does."""
    total, n = 0.0, mask.size
    mean_cut, mean_mask = cut.sum() / n, mask.sum() / n
    for p in pixels(mask):
        a, b = cut[p] - mean_cut, mask[p] - mean_mask
        if mean_mask in (0, 1):  # no foreground, or nothing else: its code counts the pixels that agree
            total += float(cut[p] == mask[p])
        else:
            total += (1 + 2 * a * b / (a * a + b * b)) ** 2 / 4
    return total / (n - 1)


def moments(values):
    mean = sum(values) / len(values)
    return mean, sum((v - mean) ** 2 for v in values) / max(len(values) - 1, 1)


def s_score(found, mask, alpha=0.5):
    """S-measure (Fan et al., ICCV 2017): alpha of the objects (eq. 9 to 11), the rest of four regions (eq. 4, 5)."""
    share = mask.mean()
    if share in (0, 1):
        return 1 - found.mean() if share == 0 else found.mean()
    objects = 0.0
    for part, values in ((share, found[mask]), (1 - share, 1 - found[~mask])):
        mean, variance = moments(list(values))
        objects += part * 2 * mean / (mean**2 + 1 + math.sqrt(variance))
    rows, columns = zip(*(p for p in pixels(mask) if mask[p]))
    y, x = (int(np.round(sum(each) / len(each))) + 1 for each in (rows, columns))
    regions = 0.0
    for window in (np.s_[:y, :x], np.s_[:y, x:], np.s_[y:, :x], np.s_[y:, x:]):
        a, b = list(found[window].ravel()), list(mask[window].ravel().astype(float))
        if a:
            regions += len(a) / mask.size * ssim(a, b)
    return max(alpha * objects + (1 - alpha) * regions, 0)


def ssim(a, b):
    (mean_a, variance_a), (mean_b, variance_b) = moments(a), moments(b)
    covariance = sum((i - mean_a) * (j - mean_b) for i, j in zip(a, b)) / max(len(a) - 1, 1)
    top, bottom = 4 * mean_a * mean_b * covariance, (mean_a**2 + mean_b**2) * (variance_a + variance_b)
    return top / bottom if top else float(bottom == 0)


def weighted_f_score(found, mask, beta2):
    """Weighted F-measure (Margolin et al., CVPR 2014): dependent errors by a Gaussian, farther ones weigh more."""
    if not mask.any():
        return 0.0
    inside = [p for p in pixels(mask) if mask[p]]
    nearest = {p: min(inside, key=lambda q: (q[0] - p[0]) ** 2 + (q[1] - p[1]) ** 2) for p in pixels(mask)}
    error = {p: abs(found[p] - mask[p]) for p in pixels(mask)}
    kernel = {(i, j): math.exp(-(i * i + j * j) / 50) for i in range(-3, 4) for j in range(-3, 4)}
    norm, weighted = sum(kernel.values()), {}
    for p in pixels(mask):
        if mask[p]:
            around = [((p[0] + i, p[1] + j), k / norm) for (i, j), k in kernel.items()]
            smooth = sum(k * error[nearest[q]] for q, k in around if q in error)
            weighted[p] = min(error[p], smooth)
        else:
            distance = math.dist(p, nearest[p])
            weighted[p] = error[p] * (2 - math.exp(math.log(0.5) / 5 * distance))
    missed, wrong = (sum(weighted[p] for p in pixels(mask) if mask[p] == side) for side in (True, False))
    hits, recall = len(inside) - missed, 1 - missed / len(inside)
    precision = hits / (hits + wrong) if hits else 0.0
    return (1 + beta2) * recall * precision / (recall + beta2 * precision) if hits else 0.0


def reference(images, beta2=0.3):
    """The seven measures of (found, mask) pairs, by name."""

    def mean(score):
        return np.mean([score(found, mask) for found, mask in images], axis=0)

    def curve(score):
        return mean(lambda found, mask: [score(np.floor(255 * found) >= level, mask) for level in range(256)])

    def adaptive(score):
        return mean(lambda found, mask: score(found >= min(2 * found.mean(), 1), mask))

    return dict(
        Smeasure=mean(s_score),
        wFmeasure=mean(lambda found, mask: weighted_f_score(found, mask, beta2)),
        MAE=mean(lambda found, mask: np.mean([abs(found[p] - mask[p]) for p in pixels(mask)])),
        meanEm=curve(e_score).mean(),
        adpEm=adaptive(e_score),
        maxFm=curve(f_score).max(),
        adpFm=adaptive(f_score),
    )


def half(height=9, width=12, left=7):
    return np.tile(np.arange(width) >= left, (height, 1))


def one(height=9, width=12, y=3, x=4):
    mask = np.zeros((height, width), bool)
    mask[y, x] = True
    return mask


def noise(mask, seed=0):
    return np.random.default_rng(seed).random(mask.shape)


def close(mask, seed=0):
    """What a good model finds."""
    return np.clip(0.8 * mask + 0.3 * noise(mask, seed), 0, 1)


def flat_inside(mask, seed=0):
    """Noise outside: with one value inside, it does not matter which of two equally near pixels is the nearest."""
    return np.where(mask, 0.7, noise(mask, seed))


def blobs(height, width, seed):
    return np.random.default_rng(seed).random((height, width)) < 0.4


EMPTY, FULL = np.zeros((8, 11), bool), np.ones((8, 11), bool)
CASES = {
    'noise': (noise(half()), half()),
    'a good one': (close(half()), half()),
    'other size': (close(half(13, 7, 3)), half(13, 7, 3)),
    'scattered': (flat_inside(blobs(9, 10, 1)), blobs(9, 10, 1)),
    'one pixel': (close(one()), one()),
    'corner': (close(one(y=0, x=0)), one(y=0, x=0)),
    'last corner': (close(one(y=8, x=11)), one(y=8, x=11)),
    'last column': (close(half(left=11)), half(left=11)),
    'all but one': (flat_inside(~one()), ~one()),
    'perfect': (half().astype(float), half()),
    'inverted': (1.0 - half(), half()),
    'nothing found': (0.0 * half(), half()),
    'all found': (0.0 * half() + 1, half()),
    'no foreground': (noise(EMPTY), EMPTY),
    'none, rightly': (0.0 * EMPTY, EMPTY),
    'no background': (noise(FULL), FULL),
    'all, rightly': (1.0 * FULL, FULL),
    'flat': (0.5 + 0.0 * half(), half()),
}


def sample(found, mask, channels=1):
    """What mmseg's segmentor gives: probabilities of one channel, logits of two."""
    found = torch.from_numpy(found)
    both = torch.stack([1 - found, found]).log() + 3.0
    data = SegDataSample(metainfo=dict(img_path='a.jpg'))
    data.seg_logits = PixelData(data=found[None] if channels == 1 else both)
    data.gt_sem_seg = PixelData(data=torch.from_numpy(mask.astype(np.int64))[None])
    return data


def evaluate(samples, **settings):
    evaluator = Evaluator([dict(type='mmtr.BinaryMetric', **settings)])
    for each in samples:
        evaluator.process([each], None)
    return evaluator.evaluate(len(samples))


@pytest.mark.parametrize('channels', [1, 2])
@pytest.mark.parametrize('case', CASES)
@pytest.mark.filterwarnings('error')
def test_every_measure_is_the_papers(case, channels):
    found, mask = CASES[case]
    assert evaluate([sample(found, mask, channels)]) == pytest.approx(reference([(found, mask)]), abs=5.1e-5)


def test_means_are_over_images_of_any_size_and_the_best_threshold_is_one_for_all():
    images = [CASES[name] for name in ('noise', 'a good one', 'other size', 'no foreground', 'scattered')]
    found = evaluate([sample(*image) for image in images])
    assert found == pytest.approx(reference(images), abs=5.1e-5)
    alone = np.mean([evaluate([sample(*image)])['maxFm'] for image in images])
    assert found['maxFm'] < alone - 1e-3


def test_beta_of_the_weighted_measure_can_be_its_papers():
    images = [CASES['noise']]
    found = evaluate([sample(*image) for image in images], weighted_beta2=1)
    assert found == pytest.approx(reference(images, beta2=1), abs=5.1e-5)
    assert abs(found['wFmeasure'] - evaluate([sample(*image) for image in images])['wFmeasure']) > 1e-3


def test_ignored_pixels_count_as_background_that_was_found():
    found, mask = CASES['a good one']
    ignored = blobs(*mask.shape, seed=5)
    labels = np.where(ignored, 255, mask)
    expected = reference([(np.where(ignored, 0, found), mask & ~ignored)])
    got = evaluate([sample(found, labels)])
    del expected['wFmeasure'], got['wFmeasure']  # of equally near pixels, either is the nearest
    assert got == pytest.approx(expected, abs=5.1e-5)


def test_processes_that_share_the_images_give_what_one_gives():
    images = [CASES[name] for name in ('noise', 'a good one', 'other size')]
    parts = [BinaryMetric(), BinaryMetric()]
    for i, image in enumerate(images):
        parts[i % 2].process(None, [sample(*image).to_dict()])
    assert [len(part.results) for part in parts] == [2, 1]
    assert BinaryMetric().compute_metrics(parts[0].results + parts[1].results) == evaluate(
        [sample(*image) for image in images]
    )


def test_a_model_of_more_classes_is_refused():
    data = sample(*CASES['noise'])
    data.set_data(dict(seg_logits=PixelData(data=torch.rand(11, 9, 12))))
    with pytest.raises(UserError, match="not of 11 classes: use 'IoUMetric'"):
        evaluate([data])


def test_a_mask_of_another_size_than_its_prediction_is_refused():
    data = SegDataSample(metainfo=dict(img_path='a.jpg'))
    data.seg_logits, data.gt_sem_seg = PixelData(data=torch.rand(1, 9, 12)), PixelData(data=torch.zeros(1, 4, 6))
    with pytest.raises(UserError, match=r"'a\.jpg' was segmented at \(9, 12\) and its mask loaded at \(4, 6\)"):
        evaluate([data])


def test_the_library_that_is_not_there_is_named_when_the_metric_is_built(monkeypatch):
    monkeypatch.setitem(sys.modules, 'py_sod_metrics', None)
    with pytest.raises(UserError, match='pip install --no-deps -r requirements/binary.txt'):
        BinaryMetric()
