"""A checkpoint that does not cover the model is named, not half loaded in silence."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.logging import MMLogger
from torch import nn

from mmtr.engine.hooks import CheckpointCoverageHook
from mmtr.errors import UserError


class Renaming(nn.Linear):
    """Reads the ``kernel`` of an older version of itself as its ``weight``."""

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if f'{prefix}kernel' in state_dict:
            state_dict[f'{prefix}weight'] = state_dict.pop(f'{prefix}kernel')
        super()._load_from_state_dict(state_dict, prefix, *args)


@pytest.fixture
def model():
    """Six parameters and three buffers."""
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), Renaming(3, 1))


def check(model, state_dict, allow_partial=False):
    runner = SimpleNamespace(model=model, _load_from='some.pth')
    CheckpointCoverageHook(allow_partial).after_load_checkpoint(runner, {'state_dict': state_dict})


def test_a_checkpoint_of_the_model_passes_also_from_a_parallel_run(model):
    check(model, model.state_dict())
    check(model, {f'module.{name}': value for name, value in model.state_dict().items()})


def test_weights_that_a_runner_does_not_look_for_cover_nothing(model):
    # mmengine looks under state_dict, or takes the file as it is: of this one it would load nothing.
    runner = SimpleNamespace(model=model, _load_from='some.pth')
    with pytest.raises(UserError, match='does not cover the model'):
        CheckpointCoverageHook().after_load_checkpoint(runner, {'model': model.state_dict()})


def test_counters_of_batch_norm_do_not_matter(model):
    state = {name: value for name, value in model.state_dict().items() if 'num_batches' not in name}
    check(model, state)
    check(nn.Linear(2, 3), {**nn.Linear(2, 3).state_dict(), 'old.num_batches_tracked': torch.tensor(1)})


def test_what_does_not_fit_is_named_and_counted(model):
    state = model.state_dict()
    del state['0.bias'], state['1.weight']
    state['3.weight'] = torch.zeros(1)
    state['2.weight'] = torch.zeros(7, 3)
    with pytest.raises(UserError) as raised:
        check(model, state)
    said = str(raised.value)
    assert "'some.pth' does not cover the model: 2 missing (0.bias, 1.weight)" in said
    assert '1 unexpected (3.weight)' in said
    assert '1 of another shape (2.weight: (7, 3) in the file, (1, 3) in the model)' in said
    assert 'no name fits' not in said


def test_many_names_are_cut_and_a_foreign_checkpoint_is_called_one(model):
    with pytest.raises(UserError, match=r'6 unexpected \(k0, k1, k2, k3, \.\.\.\).*no name fits'):
        check(model, {f'k{i}': torch.zeros(1) for i in range(6)})


def test_keys_that_the_model_itself_renames_are_covered(model):
    state = model.state_dict()
    state['2.kernel'] = state.pop('2.weight')
    check(model, state)


def test_allow_partial_warns_once_with_the_same_text(model, monkeypatch):
    said = []
    monkeypatch.setattr(
        MMLogger, 'callHandlers', lambda self, record: said.append((record.levelname, record.getMessage()))
    )
    MMLogger.get_instance('coverage')
    state = model.state_dict()
    del state['0.bias']
    check(model, state, allow_partial=True)
    assert said == [('WARNING', "Checkpoint 'some.pth' does not cover the model: 1 missing (0.bias).")]
