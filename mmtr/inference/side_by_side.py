"""Predict images with one model without and with its reduction; compare times and predictions."""

from statistics import median
from typing import Optional

import numpy as np
from mmengine.infer import BaseInferencer
from mmengine.structures import BaseDataElement
from torch import nn

from mmtr.analysis.speed import interleave
from mmtr.apis import apply_token_reduction
from mmtr.errors import UserError
from mmtr.reducers import TokenReducer
from mmtr.reducers.observer import reducer_of
from mmtr.reducers.reduces import reduces
from mmtr.visualization import fitted, marked, mosaic
from mmtr.words import aligned_rows

from .agreement import difference, shown
from .media import Picture


def plain_and_own(model: nn.Module) -> dict[str, TokenReducer]:
    """Return the reducers {'plain': no reduction, name: the reducer of ``model``}; ``model`` is plain afterwards.

    Raises:
        UserError: The model has no reduction.
    """
    own = getattr(getattr(model, 'backbone', None), 'token_reducer', None)
    if not reduces(own):
        raise UserError(
            '--compare compares the model with its reduction, and this config has none: set one, as by '
            '--cfg-options model.backbone.token_reduction.type=TokenAdapter, or mmtr.TokenReductionHook.'
        )
    device = next(model.parameters()).device
    return {'plain': apply_token_reduction(model, None).backbone.token_reducer.to(device).eval(), own.name: own}


class Predictor:
    """Predicts and draws pictures.

    Args:
        inferencer: Inferencer of ``build_inferencer``.
        score_thr: Instances above this score are drawn and compared; None: 0.3.

    Raises:
        UserError: When a picture is drawn: ``score_thr`` is given, but the model predicts no instances.
    """

    def __init__(self, inferencer: BaseInferencer, score_thr: Optional[float] = None):
        self.inferencer, self.given_score_thr = inferencer, score_thr
        self.score_thr = 0.3 if score_thr is None else score_thr

    def __call__(self, picture: Picture) -> tuple[np.ndarray, str]:
        """Predict and draw: return a picture, (height, width, 3) uint8 RGB, and a line of text about it."""
        sample = self.inferencer.forward(self.inferencer.batch(picture.given))[0]
        return self.draw(picture, sample), self.class_of(sample)

    def class_of(self, sample: BaseDataElement) -> str:
        """Describe the class of a whole image and its score; '' for another prediction."""
        return self.inferencer.in_words(sample) if shown(sample) == 'pred_label' else ''

    def draw(self, picture: Picture, sample: BaseDataElement) -> np.ndarray:
        """Draw a prediction on its picture, (height, width, 3) uint8 RGB."""
        if self.given_score_thr is not None and shown(sample) != 'pred_instances':
            raise UserError(
                f'--score-thr {self.given_score_thr} is the least score of an instance, and this model '
                'predicts no instances: leave it out.'
            )
        return self.inferencer.draw(picture.pixels, sample, self.score_thr)


class SideBySide(Predictor):
    """Predicts pictures without and with token reduction, and compares times and predictions.

    Args:
        inferencer, score_thr: See ``Predictor``.
        reducers: Reducers of ``plain_and_own``.
        repeats: Number of timed runs of each picture with each reducer.
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

    def __call__(self, picture: Picture) -> tuple[np.ndarray, str]:
        """Predict with both reducers and draw both predictions and their difference; see ``Predictor``."""
        names, samples = list(self.reducers), {}
        # Threads, caches and memory pools warm up anew for each size of image.
        warmup = 0 if picture.pixels.shape in self.sizes else 1
        self.sizes.add(picture.pixels.shape)
        # interleave shuffles each picture alike, so the order is reversed for every second picture.
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
        batch = self.inferencer.batch(picture.given)  # a batch for each reducer: predictions are written into it

        def run():
            with reducer_of(self.inferencer.model.backbone, self.reducers[name]):
                samples[name] = self.inferencer.forward(batch)[0]

        return run

    def table(self) -> str:
        """Summarise all pictures so far: median times, share of pixels or images that differ, numbers of instances."""
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
