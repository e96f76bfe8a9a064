"""Search for the settings of a reduction that reach a speed-up, or keep the accuracy, on given images."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Callable, Optional

import numpy as np
import torch
from mmengine.dataset import Compose, pseudo_collate
from mmengine.runner import Runner
from mmengine.structures import PixelData
from torch import nn

from mmtr.checks.data import images_in, loads_annotations
from mmtr.errors import UserError
from mmtr.reducers import BackboneInfo
from mmtr.registry import TOKEN_REDUCERS

from .compare import build_evaluator, build_reducers, compare_reductions, pareto_front
from .journal import check_same
from .speed import now

#: What a speed-up can be of -> where ``compare_reductions`` has it.
SPEED_OF = dict(model='total_ms', backbone='encoder_ms')


@dataclass(frozen=True)
class Outcome:
    """A reduction beside the plain model on the same images: the metric, and ms an image."""

    accuracy: float
    plain_accuracy: float
    ms: float
    plain_ms: float

    @property
    def speed_up(self) -> float:
        """Of the reduction against plain."""
        return self.plain_ms / self.ms

    @property
    def drop(self) -> float:
        """Of the metric, in its points."""
        return self.plain_accuracy - self.accuracy


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


class Images:
    """Images to search and to verify on, read at once, drawn without replacement by ``seed``.

    Args:
        read: Gives the batch of one image.
        count: How many images there are.
        wanted: How many to search on, and as many others to verify on; fewer where there are not so many.
        seed: Of the draw.

    Raises:
        UserError: There are fewer than two.
    """

    def __init__(self, read: Callable[[int], dict], count: int, wanted: int, seed: int):
        if count < 2:
            raise UserError(f'There are {count} images, and at least 2 are needed, one to search and one to verify on.')
        each = min(wanted, count // 2)
        drawn = np.random.default_rng(seed).permutation(count)[: 2 * each].tolist()
        self.search, self.held_out = ([read(i) for i in part] for part in (drawn[:each], drawn[each:]))


class Judge:
    """Measures reductions against the plain model of ``model``, by labels or by agreement with its predictions.

    Args:
        cfg: mmengine ``Config`` of the model, with its test data.
        model: In eval mode, on its device.
        folder: Of images without labels; None: the test data of the config, with labels.
        metric: A metric of ``test_evaluator`` (0 to 100, more is better).
        speed_of: One of ``SPEED_OF``.
        wanted: See ``Images``.
        seed: See ``Images``.
        clock: Gives the time in seconds.

    Raises:
        UserError: There are too few images, or no such metric.
    """

    def __init__(
        self,
        cfg,
        model: nn.Module,
        folder: Optional[str],
        metric: str,
        speed_of: str,
        wanted: int,
        seed: int,
        clock: Callable[[], float] = now,
    ):
        self.model, self.metric, self.key, self.clock = model, metric, SPEED_OF[speed_of], clock
        if folder is None:
            self.evaluator = cfg.test_evaluator
            loader = Runner.build_dataloader({**cfg.test_dataloader, 'num_workers': 0, 'persistent_workers': False})
            self.metainfo = loader.dataset.metainfo
            self.images = Images(lambda i: loader.collate_fn([loader.dataset[i]]), len(loader.dataset), wanted, seed)
        else:
            if not hasattr(model, 'num_classes'):
                raise UserError(f'--images needs a segmentor, and the model is a {type(model).__name__}.')
            # The plain predictions stand for labels, so that what compares with labels compares with them.
            self.evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
            self.metainfo = dict(classes=[str(i) for i in range(model.num_classes)])
            paths, pipeline = images_in(folder, '**/*'), _pipeline(cfg)
            self.images = Images(
                lambda i: self._labelled(pseudo_collate([pipeline(dict(img_path=str(paths[i])))])),
                len(paths),
                wanted,
                seed,
            )

    def __call__(self, reduction: Optional[dict], batches: list[dict]) -> Outcome:
        """How ``reduction`` does on ``batches``, the value of the key ``token_reduction``."""
        reducers = build_reducers(self.model, dict(plain=None, reduced=reduction))
        evaluators = {name: build_evaluator(self.evaluator, self.metainfo) for name in reducers}
        with torch.inference_mode():
            results = compare_reductions(self.model, reducers, batches, evaluators, clock=self.clock)
        metrics = results['plain']['metrics']
        if not isinstance(metrics.get(self.metric), float):
            raise UserError(
                f"--metric {self.metric} is none of the config's test_evaluator: it gives {', '.join(metrics)}."
            )
        return Outcome(
            results['reduced']['metrics'][self.metric],
            metrics[self.metric],
            results['reduced'][self.key],
            results['plain'][self.key],
        )

    @torch.inference_mode()
    def _labelled(self, batch):
        build_reducers(self.model, dict(plain=None))
        for sample, predicted in zip(batch['data_samples'], self.model.test_step(batch)):
            sample.gt_sem_seg = PixelData(data=predicted.pred_sem_seg.data.cpu())
        return batch


def _pipeline(cfg):
    """The test pipeline of a config, without what reads annotations."""
    steps = (cfg.get('test_dataloader') or {}).get('dataset', {}).get('pipeline')
    if not steps:
        raise UserError('--images reads images as test_dataloader.dataset.pipeline says, and the config has none.')
    return Compose([step for step in steps if not loads_annotations(step)])


class _Named:
    """An optuna trial that names its parameters after a method, which may share them with no other one."""

    def __init__(self, trial, method):
        self.trial, self.method = trial, method

    def __getattr__(self, suggest):
        return lambda name, *args, **kwargs: getattr(self.trial, suggest)(f'{self.method}.{name}', *args, **kwargs)


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
