"""The search of tools/tune_reduction.py, on measurements that a formula gives."""

import json
import sys

import pytest

from mmtr.analysis import tuning
from mmtr.analysis.judging import Images, Outcome
from mmtr.analysis.tuning import SKIPPED, Target, finished, fronts, open_study, ranked, search, skipped
from mmtr.errors import UserError
from mmtr.reducers import BackboneInfo

optuna = pytest.importorskip('optuna')
BACKBONE = BackboneInfo(12, 64, 1)
METHODS = ['Random', 'Expediting']
MADE = dict(config='a', checkpoint='b')


def measure(reduction):
    """Faster and worse the more layers see fewer tokens; Expediting loses half as much as Random."""
    left = reduction['grid'] ** 2 if reduction['type'] == 'Expediting' else 1 - reduction['ratio']
    saved = (1 - left) * (12 - reduction['layer']) / 12
    lost = saved * (20 if reduction['type'] == 'Random' else 10)
    return Outcome(50 - lost, 50.0, 100 * (1 - saved), 100.0)


def run(study, target, trials, measure=measure, seed=0):
    search(study, measure, target, METHODS, BACKBONE, trials, seed)
    return [trial.user_attrs['reduction'] for trial in finished(study)]


def test_the_best_setting_is_near_the_optimum():
    # A speed-up of 1.5 saves a third, which costs 3.33 points at least.
    study = open_study(None, MADE)
    target = Target(speed_up=1.5)
    run(study, target, 80)
    reduction, outcome = next(ranked(study, target))
    assert outcome.speed_up >= 1.5 and outcome == measure(reduction) and reduction['type'] == 'Expediting'
    assert outcome.drop < 4.2
    # Optuna knows the target too.
    assert study.best_trial.user_attrs['reduction'] == reduction


def predicted(reduction):
    """A prediction that errs by 5 %."""
    return 1.05 * measure(reduction).speed_up


def test_what_is_predicted_to_be_too_slow_is_not_measured():
    target, asked = Target(speed_up=1.5), []

    def counted(reduction):
        asked.append(reduction)
        return measure(reduction)

    def searched(trials, study):
        search(study, counted, target, METHODS, BACKBONE, trials, 0, predict=predicted)
        return [(trial.user_attrs['reduction'], trial.state.name) for trial in study.trials]

    study = open_study(None, MADE)
    whole = searched(20, study)
    assert len(asked) == len(finished(study)) == 20 and skipped(study)
    assert all(predicted(reduction) >= 0.93 * 1.5 for reduction in asked)
    assert all(predicted(trial.user_attrs['reduction']) < 0.93 * 1.5 for trial in skipped(study))
    # Trials went where the plain search has fewer, and an interrupted search finds the same.
    assert next(ranked(study, target))[1].drop < 4.2
    study = open_study(None, MADE)
    searched(7, study)
    assert searched(20, study) == whole
    study = open_study(None, MADE)
    search(study, counted, Target(speed_up=100), METHODS, BACKBONE, 2, 0, predict=predicted)
    assert finished(study) == [] and len(skipped(study)) == 2 * SKIPPED


def test_the_fastest_setting_within_a_drop():
    study = open_study(None, MADE)
    target = Target(max_drop=2.0)
    run(study, target, 80)
    _, outcome = next(ranked(study, target))
    assert 0 <= outcome.drop <= 2 and outcome.speed_up > 1.15  # 1.25 at the very best


def test_equal_seeds_try_equal_settings_and_each_method_is_tried():
    target = Target(speed_up=1.5)
    first, again, other = (run(open_study(None, MADE), target, 14, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    assert [reduction['type'] for reduction in first[:2]] == METHODS
    assert len({str(reduction) for reduction in first}) > 10


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(tmp_path):
    target, calls = Target(speed_up=1.5), []

    def interrupted(reduction):
        calls.append(reduction)
        if len(calls) == 13:
            raise KeyboardInterrupt
        return measure(reduction)

    path = tmp_path / 'out.trials'
    with pytest.raises(KeyboardInterrupt):
        run(open_study(path, MADE), target, 20, interrupted)
    # And a process that was killed: its trial is still running.
    study = open_study(path, MADE)
    assert len(finished(study)) == 12
    study.ask().suggest_categorical('method', METHODS)
    assert all(trial.state.is_finished() for trial in open_study(path, MADE).trials)
    assert run(open_study(path, MADE), target, 20) == run(open_study(None, MADE), target, 20)
    with pytest.raises(UserError, match='with another checkpoint: remove it'):
        open_study(path, dict(MADE, checkpoint='c'))


def test_those_that_reach_the_target_come_first_then_the_nearest():
    study = open_study(None, MADE)
    outcomes = dict(
        zip(
            'abcde',
            (
                Outcome(49, 50, 50, 100),
                Outcome(48, 50, 40, 100),
                Outcome(50, 50, 90, 100),
                Outcome(50, 50, 70, 100),
                Outcome(49, 50, 50, 100),
            ),
        )
    )
    for name in 'cbade':
        trial = study.ask()
        trial.set_user_attr('reduction', name if name != 'e' else 'a')
        trial.set_user_attr('outcome', vars(outcomes[name]))
        study.tell(trial, 0.0)
    assert [reduction for reduction, _ in ranked(study, Target(speed_up=1.9))] == ['a', 'b', 'd', 'c']
    # A drop of 2: b is the fastest; one of 1: a is. What is slower than plain reaches nothing.
    assert [reduction for reduction, _ in ranked(study, Target(max_drop=2))] == ['b', 'a', 'd', 'c']
    assert [reduction for reduction, _ in ranked(study, Target(max_drop=1))] == ['a', 'd', 'c', 'b']
    assert Target(max_drop=1).shortfall(Outcome(50, 50, 125, 100)) == pytest.approx(0.2)


def test_the_front_and_those_that_only_the_front_beats():
    study = open_study(None, MADE)
    accuracies = dict(zip('abcdefa', ((49, 50), (48, 40), (50, 90), (47, 60), (49.5, 110), (47.5, 45), (49, 50))))
    for name, (accuracy, ms) in accuracies.items():
        trial = study.ask()
        trial.set_user_attr('reduction', dict(type=name))
        trial.set_user_attr('outcome', vars(Outcome(accuracy, 50, ms, 100)))
        study.tell(trial, 0.0)
    # e is slower than plain; d is beaten by f too.
    assert [(rank, reduction['type']) for rank, reduction, _ in fronts(study)] == [
        ('front', 'c'),
        ('front', 'a'),
        ('runner-up', 'f'),
        ('front', 'b'),
    ]


@pytest.mark.parametrize('count, wanted, each', [(100, 20, 20), (7, 20, 3), (2, 1, 1)])
def test_search_and_verification_share_no_image(count, wanted, each):
    images = Images(lambda i: i, count, wanted, seed=0)
    assert len(images.search) == len(images.held_out) == each
    assert len({*images.search, *images.held_out}) == 2 * each
    assert vars(images) == vars(Images(lambda i: i, count, wanted, seed=0))
    if count == 100:
        assert vars(images) != vars(Images(lambda i: i, count, wanted, seed=1))


def test_one_image_is_too_few():
    with pytest.raises(UserError, match='There are 1 images, and at least 2'):
        Images(lambda i: i, 1, 20, seed=0)


def test_without_optuna_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, 'optuna', None)
    with pytest.raises(UserError, match="pip install 'optuna>=5'"):
        tuning.import_optuna()


def test_what_is_measured_is_what_is_kept():
    study = open_study(None, MADE)
    seen = []
    kept = run(study, Target(speed_up=1.5), 20, lambda reduction: seen.append(reduction) or measure(reduction))
    assert kept == seen == json.loads(json.dumps(kept))
    assert all(len(str(value)) <= 4 for reduction in kept for key, value in reduction.items() if key != 'type')
