"""Search for settings of a reduction that reach a speed-up, or keep the accuracy, on given images."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Callable, Optional

import numpy as np

from mmtr.analysis.judging import Outcome, _Named
from mmtr.analysis.trade_offs import pareto_front
from mmtr.errors import UserError
from mmtr.reducers import BackboneInfo
from mmtr.registry import TOKEN_REDUCERS

from .journal import check_same

#: Share of a target speed-up from which a predicted one is measured: predictions err by less than the rest.
CLOSE = 0.93
#: Largest number of settings that a search skips, as a multiple of its trials.
SKIPPED = 20


@dataclass(frozen=True)
class Target:
    """Target of a search: the best metric at a given speed-up, or the best speed-up at a given drop of the metric.

    Args:
        speed_up: Least speed-up against the plain model; None: ``max_drop`` is given.
        max_drop: Largest drop of the metric, in its points; None: ``speed_up`` is given.
    """

    speed_up: Optional[float] = None
    max_drop: Optional[float] = None

    def constraints(self, outcome: Outcome) -> dict[str, float]:
        """Return name -> distance of an outcome from each limit; values of 0 or below satisfy it."""
        if self.max_drop is None:
            return {'speed-up': self.speed_up - outcome.speed_up}
        return {'drop': outcome.drop - self.max_drop, 'speed-up': 1 - outcome.speed_up}

    def shortfall(self, outcome: Outcome) -> float:
        """Sum of the distances by which an outcome misses the target; 0 if it reaches the target."""
        return sum(max(value, 0) for value in self.constraints(outcome).values())

    def value(self, outcome: Outcome) -> float:
        """The value to maximise: the metric or the speed-up."""
        return outcome.accuracy if self.max_drop is None else outcome.speed_up

    def __str__(self):
        return (
            f'a speed-up of {self.speed_up:g}'
            if self.max_drop is None
            else (f'a speed-up at a drop of at most {self.max_drop:g}')
        )


def import_optuna() -> ModuleType:
    """Import optuna; raises ``UserError`` if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            f"Tuning needs optuna, which is not installed: pip install 'optuna>=5' numpy=={np.__version__}."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(path: Optional[str], made: dict) -> Any:
    """Open or create the optuna study in a file.

    Args:
        path: The file; None: in memory.
        made: What the results depend on, see ``mmtr.analysis.journal.made_with``.

    Returns:
        optuna's ``Study``. Trials in which a process was killed are marked as failed.

    Raises:
        UserError: optuna is not installed, or the study was made with other settings than ``made``.
    """
    optuna = import_optuna()
    storage = None
    if path is not None:
        storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
    study = optuna.create_study(storage=storage, study_name='tune', direction='maximize', load_if_exists=True)
    if 'made with' not in study.user_attrs:
        study.set_user_attr('made with', made)
    check_same(study.user_attrs['made with'], made, path)
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):  # a process was killed in it
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def finished(study: Any) -> list:
    """List the completed trials of a study."""
    return [trial for trial in study.trials if trial.state.name == 'COMPLETE']


def skipped(study: Any) -> list:
    """List the trials of a study that were not measured, since they were predicted to be too slow."""
    return [trial for trial in study.trials if trial.state.name == 'PRUNED']


def search(
    study: Any,
    measure: Callable[[dict], Outcome],
    target: Target,
    methods: list[str],
    backbone: BackboneInfo,
    trials: int,
    seed: int,
    progress: Optional[Callable[[], object]] = None,
    predict: Optional[Callable[[dict], float]] = None,
) -> None:
    """Add trials to ``study`` until it has ``trials`` completed ones; deterministic if ``measure`` is.

    Args:
        study: Study of ``open_study``.
        measure: Measures a value of the config key ``token_reduction``.
        target: The target of the search.
        methods: Names of reducers; each is tried once before the sampler chooses among them.
        backbone: Shape of the backbone that the reducers are for.
        trials: Number of trials in all, including those that ``study`` already has.
        seed: Seed of the sampler.
        progress: Called after each trial.
        predict: Predicts the speed-up of a setting; those below ``CLOSE`` of the target are skipped, and do not count
            as trials. At most ``SKIPPED`` times ``trials`` are.
    """
    optuna = import_optuna()
    while len(finished(study)) < trials and len(skipped(study)) < SKIPPED * trials:
        number = len(finished(study)) + len(skipped(study))
        # Each trial has its own sampler, whose draws depend only on the trials so far: an interrupted search goes on
        # as if it had not been interrupted.
        own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(seed=own_seed)
        if number < len(methods):
            study.enqueue_trial(dict(method=methods[number]))
        trial = study.ask()
        try:
            method = trial.suggest_categorical('method', methods)
            settings = TOKEN_REDUCERS.get(method).search_space(_Named(trial, method), backbone)
            # The form in which the study stores it: lists for tuples, 0.15 for 0.15000000000000002.
            reduction = json.loads(json.dumps(dict(type=method, **settings)), parse_float=lambda n: round(float(n), 6))
            predicted = None if predict is None else predict(reduction)
            if predicted is not None and predicted < CLOSE * target.speed_up:
                trial.set_user_attr('reduction', reduction)
                trial.set_user_attr('predicted', predicted)
                trial.set_constraint('speed-up', target.speed_up - predicted)
                study.tell(trial, state=optuna.trial.TrialState.PRUNED)
                continue
            outcome = measure(reduction)
        except BaseException:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            raise
        trial.set_user_attr('reduction', reduction)
        trial.set_user_attr('outcome', vars(outcome))
        for name, value in target.constraints(outcome).items():
            trial.set_constraint(name, value)
        study.tell(trial, target.value(outcome))
        if progress is not None:
            progress()


def ranked(study: Any, target: Target) -> Iterator[tuple[dict, Outcome]]:
    """Yield the distinct settings of a study with their outcome, best first.

    Settings that reach the target come first, by their value; the others follow, the nearest to the target first.
    """
    found = [(trial.user_attrs['reduction'], Outcome(**trial.user_attrs['outcome'])) for trial in finished(study)]
    seen = []
    for reduction, outcome in sorted(found, key=lambda each: (target.shortfall(each[1]), -target.value(each[1]))):
        if reduction not in seen:
            seen.append(reduction)
            yield reduction, outcome


def fronts(study: Any) -> Iterator[tuple[str, dict, Outcome]]:
    """Yield the settings of a study that are faster than plain and on the first or second Pareto front, slowest first.

    Yields:
        'front' for a setting that no other beats both in accuracy and in speed, 'runner-up' for one that only
        settings of the front beat; the value of the config key ``token_reduction``; its outcome.
    """
    found = {}
    for trial in finished(study):
        outcome = Outcome(**trial.user_attrs['outcome'])
        if outcome.speed_up > 1:
            found.setdefault(json.dumps(trial.user_attrs['reduction']), outcome)
    points = {name: (outcome.speed_up, -outcome.drop) for name, outcome in found.items()}
    front = pareto_front(points)
    second = pareto_front({name: point for name, point in points.items() if name not in front})
    ranks = {**dict.fromkeys(front, 'front'), **dict.fromkeys(second, 'runner-up')}
    for name in sorted(ranks, key=lambda name: points[name]):
        yield ranks[name], json.loads(name), found[name]
