"""A reduction that rises over a training of a stock model, by the real runner."""

import pytest
import torch
from mmengine.hooks import Hook

from mmtr import UserError
from mmtr.engine.hooks import ReductionCurriculumHook
from tests.test_engine.tiny_eomt import TinyEoMT, run_of

RATIO = 0.75  # of 4x4 patches: one row and column is left


class Watch(Hook):
    """How many patch tokens the last layer sees in each forward pass, by the mode of the model."""

    priority = 'LOWEST'

    def before_run(self, runner):
        self.backbone, self.trained, self.evaluated, self.kept = runner.model.backbone, [], [], []
        self.backbone.layers[-1].linears()['fc2'][0].register_forward_hook(self.note)

    def note(self, linear, args, out):
        seen = self.trained if linear.training else self.evaluated
        seen.append(out.shape[1] - 1)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.kept.append(self.backbone.token_reduction['ratio'])


def watched(runner):
    watch = Watch()
    runner.register_hook(watch)
    runner.train()
    return watch


@pytest.mark.slow
def test_it_rises_in_training_alone_and_a_resumed_run_goes_on(tiny_segmenter, make_runner, tmp_path):
    cfg = tiny_segmenter
    cfg.custom_imports = dict(imports=['mmtr'], allow_failed_imports=False)
    reduction = dict(type='GridPool', ratio=RATIO, layers=(1, 2))
    cfg.custom_hooks = [
        dict(type='mmtr.TokenReductionHook', token_reduction=reduction),
        dict(type='mmtr.ReductionCurriculumHook', end=0.75, steps=3),
    ]
    whole = watched(make_runner(cfg))
    # A ratio of 0, 0.25, 0.5 and 0.75 of 4 rows and columns; six images are validated after steps 2 and 4.
    assert whole.trained == [16, 9, 4, 1] and whole.evaluated == [1] * 12 and whole.kept == [RATIO] * 4
    assert whole.backbone.token_reducer.ratio == (RATIO, RATIO)
    saved = torch.load(tmp_path / 'work' / 'iter_2.pth', weights_only=False)['state_dict']
    assert not any('reducer' in name for name in saved)
    cfg.update(load_from=str(tmp_path / 'work' / 'iter_2.pth'), resume=True, work_dir=str(tmp_path / 'resumed'))
    assert watched(make_runner(cfg)).trained == [4, 1]


def reducers(folder, reduction, **settings):
    """The reducer of each of 12 iterations."""
    model, seen = TinyEoMT(), []
    model.backbone.set_token_reduction(reduction)
    model.backbone.register_forward_pre_hook(lambda module, args: seen.append(module.token_reducer))
    run_of(folder, model, [dict(type='mmtr.ReductionCurriculumHook', **settings)]).train()
    return seen


def test_as_many_reducers_as_steps_and_no_more_than_differ(tmp_path):
    seen = reducers(tmp_path, dict(type='TokenAdapter', ratio=0.5, layers=(0, 4)), end=1.0, steps=4)
    assert [reducer.ratio[0] for reducer in seen] == [0.0] * 3 + [0.125] * 3 + [0.25] * 3 + [0.375] * 3
    assert len(set(seen)) == 4
    seen = reducers(tmp_path, dict(type='ToMe', mode='progressive', r=1))
    assert [reducer.r[0] for reducer in seen] == [0] * 4 + [1] * 8 and len(set(seen)) == 3


@pytest.mark.parametrize(
    'reduction, settings, words',
    [
        (None, dict(), 'needs a model that reduces tokens'),
        (dict(type='MPM'), dict(), "type='MPM' with these settings has no number"),
        (dict(type='DAR'), dict(), "type='DAR' learns how much"),
        (dict(type='Random'), dict(steps=5), 'steps=5 has no effect on methods that prune'),
        (dict(type='GridPool'), dict(steps=0), 'steps=0 must be a whole number from 1 to 1000, or None'),
    ],
    ids=str,
)
def test_what_cannot_rise_is_refused_before_the_training(tmp_path, reduction, settings, words):
    with pytest.raises(UserError, match=words):
        reducers(tmp_path, reduction, **settings)


def test_after_a_training_that_failed_the_configured_reducer_is_the_goal(tmp_path):
    model = TinyEoMT()
    model.backbone.set_token_reduction(dict(type='GridPool'))
    full, hook = model.backbone.token_reducer, ReductionCurriculumHook()
    runner = run_of(tmp_path, model, [hook])
    hook.before_train(runner)
    hook.before_train_iter(runner, 0)
    assert model.backbone.token_reducer is not full
    hook.before_train(runner)
    assert model.backbone.token_reducer is full
