"""Search for the settings of a reduction that reach a speed-up, or keep the accuracy, on given images."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np

from mmtr.analysis.judging import Outcome, _Named
from mmtr.analysis.trade_offs import pareto_front
from mmtr.errors import UserError
from mmtr.reducers import BackboneInfo
from mmtr.registry import TOKEN_REDUCERS

from .journal import check_same


@dataclass(frozen=True)
class Target:
    """Either a speed-up at which the metric is to be best, or a drop of the metric at which a speed-up is."""

    speed_up: Optional[float] = None
    max_drop: Optional[float] = None

    def constraints(self, outcome: Outcome) -> dict[str, float]:
        """By name how far an outcome is from what it must reach; none is above 0: it does."""
        if self.max_drop is None:
            return {'speed-up': self.speed_up - outcome.speed_up}
        return {'drop': outcome.drop - self.max_drop, 'speed-up': 1 - outcome.speed_up}

    def shortfall(self, outcome: Outcome) -> float:
        """How far an outcome is from the target in all; 0: it is reached."""
        return sum(max(value, 0) for value in self.constraints(outcome).values())

    def value(self, outcome: Outcome) -> float:
        """What is to be as large as possible."""
        return outcome.accuracy if self.max_drop is None else outcome.speed_up

    def __str__(self):
        return (
            f'a speed-up of {self.speed_up:g}'
            if self.max_drop is None
            else (f'a speed-up at a drop of at most {self.max_drop:g}')
        )


def import_optuna():
    """The library that searches; raises ``UserError`` where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(
            f"Tuning needs optuna, which is not installed: pip install 'optuna>=5' numpy=={np.__version__}."
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def open_study(path: Optional[str], made: dict):
    """The optuna study in the file ``path`` (None: in memory), to be gone on with.

    Raises:
        UserError: It was made with something else than ``made``.
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


def finished(study) -> list:
    """The trials of a study that were measured."""
    return [trial for trial in study.trials if trial.state.name == 'COMPLETE']


def search(
    study,
    measure: Callable[[dict], Outcome],
    target: Target,
    methods: list[str],
    backbone: BackboneInfo,
    trials: int,
    seed: int,
    progress: Optional[Callable[[], object]] = None,
) -> None:
    """Add trials to ``study`` until it has ``trials``; the same ones again if ``measure`` gives the same.

    Args:
        study: Of ``open_study``.
        measure: From the value of the key ``token_reduction`` to its outcome.
        target: What the settings are to reach.
        methods: Names of reducers; each is tried once with any settings before the sampler chooses.
        backbone: What the reducers are for.
        trials: In all, those included that ``study`` already has.
        seed: Of the sampler.
        progress: Called after each trial.
    """
    optuna = import_optuna()
    for number in range(len(finished(study)), trials):
        # A sampler of its own for each trial: what it draws depends on the trials so far alone, so that an
        # interrupted search goes on as if it had not been.
        own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        study.sampler = optuna.samplers.TPESampler(seed=own_seed)
        if number < len(methods):
            study.enqueue_trial(dict(method=methods[number]))
        trial = study.ask()
        try:
            method = trial.suggest_categorical('method', methods)
            settings = TOKEN_REDUCERS.get(method).search_space(_Named(trial, method), backbone)
            # As it is kept in the study, where a tuple is a list; 0.15 for 0.15000000000000002.
            reduction = json.loads(json.dumps(dict(type=method, **settings)), parse_float=lambda n: round(float(n), 6))
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


def ranked(study, target: Target) -> Iterator[tuple[dict, Outcome]]:
    """Distinct settings of a study with their outcome, the best first of those that reach the target.

    The others follow, the nearest to it first.
    """
    found = [(trial.user_attrs['reduction'], Outcome(**trial.user_attrs['outcome'])) for trial in finished(study)]
    seen = []
    for reduction, outcome in sorted(found, key=lambda each: (target.shortfall(each[1]), -target.value(each[1]))):
        if reduction not in seen:
            seen.append(reduction)
            yield reduction, outcome


def fronts(study) -> Iterator[tuple[str, dict, Outcome]]:
    """What of a study is faster than plain and best at its speed, from the slowest to the fastest.

    Yields:
        'front' for settings that no other one beats both in accuracy and in speed, 'runner-up' for those that only
        settings of the front beat; the value of the key ``token_reduction``; its outcome.
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
