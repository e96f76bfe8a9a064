"""One model on images, without and with its reduction: what it predicts, how fast, and where that differs."""

from statistics import median
from typing import Optional

import numpy as np
from mmengine.infer import BaseInferencer
from torch import nn

from mmtr.analysis.speed import interleave
from mmtr.apis import apply_token_reduction
from mmtr.errors import UserError
from mmtr.reducers import TokenReducer
from mmtr.reducers.observer import reducer_of
from mmtr.visualization import fitted, marked, mosaic
from mmtr.words import aligned_rows

from .agreement import difference, shown
from .media import Picture


def plain_and_own(model: nn.Module) -> dict[str, TokenReducer]:
    """No reduction, named plain, and the one that the model has, which is taken out of it.

    Raises:
        UserError: The model has none.
    """
    own = getattr(getattr(model, 'backbone', None), 'token_reducer', None)
    if own is None or type(own) is TokenReducer:
        raise UserError(
            '--compare compares the model with its reduction, and this config has none: set one, as by '
            '--cfg-options model.backbone.token_reduction.type=TokenAdapter, or mmtr.TokenReductionHook.'
        )
    device = next(model.parameters()).device
    return {'plain': apply_token_reduction(model, None).backbone.token_reducer.to(device).eval(), own.name: own}


class Predictor:
    """Predicts and draws one picture after the other.

    Args:
        inferencer: Of ``build_inferencer``.
        score_thr: Instances above this score are drawn and compared; None: 0.3.

    Raises:
        UserError: There is a ``score_thr``, but what the model predicts has no scores.
    """

    def __init__(self, inferencer: BaseInferencer, score_thr: Optional[float] = None):
        self.inferencer, self.given_score_thr = inferencer, score_thr
        self.score_thr = 0.3 if score_thr is None else score_thr

    def __call__(self, picture: Picture) -> tuple[np.ndarray, str]:
        """The picture to write, (height, width, 3) uint8 RGB, and what there is to say of it."""
        sample = self.inferencer.forward(self.inferencer.batch(picture.given))[0]
        return self.draw(picture, sample), self.class_of(sample)

    def class_of(self, sample) -> str:
        """The class of a whole image and its score, in words; of another prediction ''."""
        return self.inferencer.in_words(sample) if shown(sample) == 'pred_label' else ''

    def draw(self, picture: Picture, sample) -> np.ndarray:
        """The picture with a prediction."""
        if self.given_score_thr is not None and shown(sample) != 'pred_instances':
            raise UserError(
                f'--score-thr {self.given_score_thr} is the least score of an instance, and this model '
                'predicts no instances: leave it out.'
            )
        return self.inferencer.draw(picture.pixels, sample, self.score_thr)


class SideBySide(Predictor):
    """Predicts without and with token reduction, and compares.

    Args:
        inferencer, score_thr: As ``Predictor``.
        reducers: Of ``plain_and_own``.
        repeats: Times that each picture is timed with each of them.
    """

    def __init__(
        self,
        inferencer: BaseInferencer,
        reducers: dict[str, TokenReducer],
        repeats: int,
        score_thr: Optional[float] = None,
    ):
        super().__init__(inferencer, score_thr)
        self.reducers, self.repeats = reducers, repeats
        self.milliseconds: dict[str, list[float]] = {name: [] for name in reducers}
        self.sizes: set[tuple[int, ...]] = set()
        self.pixels = self.differing = 0
        self.unit = 'pixels'
        self.instances: list[tuple[int, int, int]] = []

    def __call__(self, picture):
        """See ``Predictor``: both predictions and where they differ."""
        names, samples = list(self.reducers), {}
        # Threads, caches and memory pools settle for each size of image.
        warmup = 0 if picture.pixels.shape in self.sizes else 1
        self.sizes.add(picture.pixels.shape)
        # interleave shuffles alike for each picture: who is first, turns.
        order = names[::-1] if len(self.milliseconds['plain']) % 2 else names
        timings = interleave({name: self._call(picture, name, samples) for name in order}, self.repeats, warmup)
        took = [1e3 * timings[name].median for name in names]
        found = difference(*(samples[name] for name in names), self.score_thr)
        for name, each in zip(names, took):
            self.milliseconds[name].append(each)
        self.pixels += found.pixels.size
        self.differing += int(found.pixels.sum())
        self.unit = found.unit
        speeds = [f'{name} {each:.1f} ms' for name, each in zip(names, took)]
        speeds[1] += f', {took[0] / took[1]:.2f}x'
        drawn = [self.draw(picture, samples[name]) for name in names]
        if found.unit == 'images':
            classes = [self.class_of(samples[name]) for name in names]
            speeds = [f'{speed}, {each}' for speed, each in zip(speeds, classes)]
            differs = 'another class' if found.pixels.any() else 'the same class'
            panels = list(zip(speeds, drawn))
        else:
            differs = f'{found.pixels.mean():.2%} of the pixels differ'
            panels = list(zip([*speeds, differs], [*drawn, marked(picture.pixels, found.pixels)]))
        counts = []
        if found.instances is not None:
            self.instances.append(found.instances)
            counts = [_in_words([found.instances])]
        return mosaic([[(text, fitted(panel)) for text, panel in panels]]), ', '.join([*speeds, differs, *counts])

    def _call(self, picture, name, samples):
        batch = self.inferencer.batch(picture.given)  # one for each: predictions are written into its samples

        def run():
            with reducer_of(self.inferencer.model.backbone, self.reducers[name]):
                samples[name] = self.inferencer.forward(batch)[0]

        return run

    def table(self) -> str:
        """Of all pictures so far: median times, the share of all pixels that differ, the number of instances."""
        cells = [('', 'ms/image', 'images/s', 'speed-up', f'{self.unit} that differ')]
        plain = median(self.milliseconds['plain'])
        for name, each in self.milliseconds.items():
            took, differ = median(each), '' if name == 'plain' else f'{self.differing / self.pixels:.2%}'
            cells.append((name, f'{took:.1f}', f'{1e3 / took:.1f}', f'{plain / took:.2f}x', differ))
        rows = [aligned_rows(cells)]
        if self.instances:
            rows += [
                f'In all, {_in_words(self.instances)}.',
                'Pixels differ that are of another class or instance; an instance is in both with the same class '
                'and an intersection over union above 0.5.',
            ]
        else:
            rows.append(f'{self.unit.capitalize()} differ that are of another class.')
        runs = f'the median of {self.repeats} runs in turns' if self.repeats > 1 else 'one run'
        return '\n'.join([*rows, f'Times: of the whole test step, median over the images, for each {runs}.'])


def _in_words(instances):
    plain, reduced, both = map(sum, zip(*instances))
    return f'instances: {plain} plain, {reduced} reduced, {both} in both'
