"""Warn of reductions that gain nothing on this machine, by a sweep."""

import logging
import os

from mmengine.logging import print_log
from torch import nn

from mmtr.models.backbones.common.backbone import TunableBackbone

from .prediction import Sweep, read_sweep

#: Speed-up below which a reduction is not worth it.
LEAST = 1.05


def gaining(sweep: Sweep, method: str = '') -> str:
    """Name the mildest setting of a sweep that was measured to gain 5 %; of ``method`` if there is one."""
    found = [
        (name.partition(',')[0] != method, sweep.plain_ms / each['ms'], each['token_reduction'])
        for name, variants in sweep.own.items()
        for each in variants['measured']
    ]
    good = sorted((each for each in found if each[1] >= LEAST), key=lambda each: each[:2])
    if not good:
        return 'no setting that was measured there gains more'
    _, speed_up, reduction = good[0]
    return f'{reduction} was {speed_up:.2f}x as fast there'


def warn_of_small_gains(model: nn.Module) -> None:
    """Log a sentence for each reduction in ``model`` that is predicted to gain less than 5 %.

    It is predicted by the sweep in the file that the environment variable ``MMTR_SWEEP`` names, if there is one.

    Raises:
        UserError: The file cannot be read.
    """
    for sentence in _cautions(model):
        print_log(sentence, 'current', logging.WARNING)


def _cautions(model):
    path = os.environ.get('MMTR_SWEEP')
    if not path:
        return
    sweep = read_sweep(path, 'MMTR_SWEEP')
    for backbone in model.modules():
        if not isinstance(backbone, TunableBackbone) or backbone.token_reduction is None:
            continue
        other = sweep.mismatch(backbone)
        if other:
            yield f"MMTR_SWEEP='{path}' predicts nothing of this model: it was measured with {other}."
            continue
        reducer = backbone.token_reducer
        if reducer.restores_late:
            continue
        found = sweep.predict(backbone.token_reduction, reducer)
        if found.speed_up < LEAST:
            yield (
                f'{reducer.name} is predicted to be {"at most " if found.bound else ""}{found.speed_up:.2f}x as fast '
                f'as no reduction here ({sweep.place}); {gaining(sweep, reducer.name)}.'
            )
