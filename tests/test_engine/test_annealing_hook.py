"""The masks of EoMT's queries go away by the step alone, in any loop, and as before in a resumed run."""

import pytest

from mmtr import UserError
from mmtr.engine.hooks import MaskAnnealingHook
from tests.test_engine.tiny_eomt import TinyEoMT, run_of

EPOCHS = dict(type='EpochBasedTrainLoop', max_epochs=6)  # of two steps


def probability(step, start, end, power=0.9):
    if step < start:
        return 1.0
    return 0.0 if step >= end else (1 - (step - start) / (end - start)) ** power


def seen(folder, loop=None, resume=False, layers=3, **settings):
    model = TinyEoMT(layers)
    run_of(folder, model, [dict(type='mmtr.MaskAnnealingHook', **settings)], loop, resume).train()
    return model.panoptic_head.seen


@pytest.mark.parametrize('loop', [None, EPOCHS], ids=['steps', 'epochs'])
def test_each_layer_falls_in_its_sixth_of_the_training(tmp_path, loop):
    # Of 12 steps: [2, 4], [5, 7] and [8, 10].
    expected = [[probability(step, start, start + 2) for start in (2, 5, 8)] for step in range(12)]
    found = seen(tmp_path, loop)
    assert len(found) == 12 and found == [pytest.approx(each, abs=1e-6) for each in expected]
    assert expected[3][0] == 0.5**0.9 and expected[10] == [0, 0, 0]


def test_a_resumed_run_goes_on_with_the_same_probabilities(tmp_path):
    found = seen(tmp_path)
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_3.pth'))
    assert seen(tmp_path, resume=True) == found[3:]


def test_windows_of_ones_own(tmp_path):
    found = seen(tmp_path, starts=[0, 3, 6], ends=[4, 5, 7], power=2.0)
    windows = ((0, 4), (3, 5), (6, 7))
    assert found == [pytest.approx([probability(s, *w, 2.0) for w in windows], abs=1e-6) for s in range(12)]


def test_the_published_windows_are_the_default():
    hook, steps = MaskAnnealingHook(), 88692
    assert [*hook._windows(4, steps)] == [(14782, 29564), (29564, 44346), (44346, 59128), (59128, 73910)]
    assert [*hook._windows(3, steps)] == [(14782, 29564), (36955, 51737), (59128, 73910)]
    assert [*hook._windows(1, steps)] == [(14782, 29564)]


@pytest.mark.parametrize(
    'settings, layers, words',
    [
        (dict(power=0), 3, 'power=0 must be a number above 0'),
        (dict(starts=[0, 1, 2]), 3, 'must be given together'),
        (dict(starts=[0, 1], ends=[3, 4, 5]), 3, 'must be given together'),
        (dict(starts=[0, 4, 2], ends=[3, 4, 5]), 3, 'each start before its end'),
        (dict(starts=[0, 1], ends=[3, 4]), 3, 'must be 3 steps'),
        (dict(starts=[0, 1, 2], ends=[3, 4, 50]), 3, 'at most the 12 steps'),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else '',
)
def test_settings_that_cannot_work_are_refused(tmp_path, settings, layers, words):
    with pytest.raises(UserError, match=words):
        seen(tmp_path, layers=layers, **settings)


def test_a_model_without_query_layers_is_refused(tmp_path):
    model = TinyEoMT()
    del model.panoptic_head.mask_probs
    with pytest.raises(UserError, match='needs a model with the head of an EoMT'):
        run_of(tmp_path, model, [dict(type='mmtr.MaskAnnealingHook')]).train()
