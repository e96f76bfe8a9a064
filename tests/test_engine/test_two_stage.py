"""Two stages: every parameter has the rate of EoMT's formulas at every step of a real run, also of one that resumes."""

import pytest
from mmengine.optim import build_optim_wrapper

from mmtr import UserError
from mmtr.engine import TwoStagePolyLR
from tests.test_engine.tiny_eomt import RateHook, TinyEoMT, run_of

STEPS, WARMUP, LAYERS = 12, (2, 3), 4
OPTIMIZER = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.05),
    constructor='mmtr.LayerDecayConstructor',
    paramwise_cfg=dict(decay_rate=0.8, num_full_layers=2, decay_vectors=True),
)
SCHEDULE = [dict(type='mmtr.TwoStagePolyLR', warmup=WARMUP, power=0.9, by_epoch=False)]


def expected(name, step):
    """The rate of a parameter at a step, by the formulas of the paper and its release."""
    rate, (heads, encoder) = 1e-3, WARMUP
    if not name.startswith('backbone.'):
        return rate * (step / heads if step < heads else (1 - (step - heads) / (STEPS - heads)) ** 0.9)
    layer = int(name.split('.')[2]) if '.layers.' in name else LAYERS if '.ln1.' in name else 0
    if layer < LAYERS - 2:
        rate *= 0.8 ** (LAYERS - 1 - layer)
    if step < heads:
        return 0.0
    if step < heads + encoder:
        return rate * (step - heads) / encoder
    return rate * (1 - (step - heads - encoder) / (STEPS - heads - encoder)) ** 0.9


def rates(folder, resume=False):
    model, hook = TinyEoMT(), RateHook()
    run_of(folder, model, [hook], optim_wrapper=OPTIMIZER, param_scheduler=SCHEDULE, resume=resume).train()
    return hook.seen, model


def test_every_parameter_at_every_step_and_across_a_resume(tmp_path):
    found, model = rates(tmp_path)
    assert len(found) == STEPS
    for step, each in enumerate(found):
        assert each == pytest.approx({name: expected(name, step) for name in each}, abs=1e-12)
        assert each.keys() == dict(model.named_parameters()).keys()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_3.pth'))
    resumed, again = rates(tmp_path, resume=True)
    assert resumed == found[3:]
    weights = model.state_dict()
    assert all((value == weights[name]).all() for name, value in again.state_dict().items())


def test_without_a_warm_up_of_the_backbone():
    wrapper = build_optim_wrapper(TinyEoMT(), OPTIMIZER)
    schedule = TwoStagePolyLR(wrapper, end=10, warmup=(2, 0), by_epoch=False)
    assert {group['lr'] for group in wrapper.optimizer.param_groups} == {0.0}
    wrapper.step()
    wrapper.step()
    schedule.step()
    schedule.step()
    assert sorted({group['lr'] for group in wrapper.optimizer.param_groups}) == pytest.approx([5.12e-4, 6.4e-4, 1e-3])


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(by_epoch=True), 'by_epoch=True must be False'),
        (dict(warmup=(6, 6)), r'warmup=\(6, 6\) must be fewer than the 12 steps'),
        (dict(warmup=(6,)), 'warmup'),
        (dict(power=0), 'power=0 must be a number above 0'),
    ],
    ids=str,
)
def test_settings_that_cannot_work_are_refused(settings, words):
    with pytest.raises(UserError, match=f'TwoStagePolyLR.*{words}'):
        TwoStagePolyLR(build_optim_wrapper(TinyEoMT(), OPTIMIZER), **{'end': STEPS, 'by_epoch': False, **settings})


def test_groups_of_another_constructor_are_refused():
    wrapper = build_optim_wrapper(TinyEoMT(), {'optimizer': OPTIMIZER['optimizer']})
    with pytest.raises(UserError, match='LayerDecayConstructor'):
        TwoStagePolyLR(wrapper, end=STEPS, warmup=WARMUP, by_epoch=False)
