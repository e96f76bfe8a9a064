"""Checkpoints of what was tuned: they need the frozen weights that it was tuned with, and know these again."""
import torch
from torch import Tensor, nn

from mmtr.errors import UserError

from .freezing import frozen_backbones, frozen_state

#: In the ``meta`` of a checkpoint: the fingerprint of the frozen weights, which are not in it.
META = 'frozen_weights'
_SAMPLES = 16


def weights_in(checkpoint: dict) -> dict[str, Tensor]:
    """The state dict in a checkpoint, or that it is, without the prefix of data-parallel training."""
    return {name.removeprefix('module.'): value for name, value in checkpoint.get('state_dict', checkpoint).items()}


def fingerprint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A few values of each weight, evenly spaced, in float32 on the CPU; a hash would not bear another rounding."""
    found = {}
    for name, value in state.items():
        count = min(value.numel(), _SAMPLES)
        index = torch.arange(count, device=value.device) * (value.numel() - 1) // max(count - 1, 1)
        found[name] = value.detach().flatten()[index].float().cpu()
    return found


def take_out_frozen(model: nn.Module, checkpoint: dict) -> None:
    """Leave in a checkpoint what was tuned, and put the fingerprint of the rest into its ``meta``."""
    frozen = frozen_state(model)
    checkpoint['state_dict'] = {
        name: value for name, value in checkpoint['state_dict'].items() if name not in frozen}
    checkpoint['meta'][META] = fingerprint(frozen)


def put_in_frozen(model: nn.Module, checkpoint: dict, path: str) -> None:
    """Give the checkpoint of what was tuned the frozen weights of ``model``; any other is left as it is.

    A model that has not the weights that it was tuned with loads them from its pretrained file, as ``init_cfg`` says.

    Raises:
        UserError: The model has no such file, the file cannot be read or is of other weights; or what was tuned is
            of another ``peft`` or ``token_reduction`` than the model's.
    """
    expected = checkpoint.get('meta', {}).get(META)
    if expected is None:
        return
    what = f"'{path}' holds only what was tuned"
    backbones = dict(frozen_backbones(model))
    if not backbones:
        raise UserError(f'{what}, and the model of this config has no peft: set model.backbone.peft as in training.')
    if _differing(expected, frozen_state(model)):
        for name, backbone in backbones.items():
            _load_pretrained(name, backbone, what)
        differing = _differing(expected, frozen_state(model))
        if differing:
            files = ' and '.join(f"'{backbone.pretrained_file}'" for backbone in backbones.values())
            raise UserError(f'{what}, and the pretrained file {files} is not the one that it was tuned with: '
                            f'{len(differing)} of {len(expected)} weights differ, such as {differing[0]}.')
    state = weights_in(checkpoint)
    _check_tuned(model, state, backbones, path)
    checkpoint['state_dict'] = {**frozen_state(model), **state}
    del checkpoint['meta'][META]  # it is whole now, for the next hook that asks


def check_pretrained(model: nn.Module) -> None:
    """Raise a ``UserError`` unless each backbone with ``peft`` has a pretrained file."""
    for name, backbone in frozen_backbones(model):
        if backbone.pretrained_file is None:
            raise UserError(
                f'{name or "backbone"}.peft freezes the weights of the backbone, and there are none to freeze: set '
                f'model.{name or "backbone"}.pretrained to their file. A whole model in load_from would not do, for '
                'checkpoints hold only what is tuned.')


def check_same_frozen(model: nn.Module, checkpoint: dict, path: str) -> None:
    """Raise a ``UserError`` if a whole checkpoint has other weights than the pretrained ones where they are frozen."""
    state = weights_in(checkpoint)
    frozen = frozen_state(model)
    # A weight of another shape is not loaded, and that is for others to say.
    shared = {name: value for name, value in state.items()
              if name in frozen and value.shape == frozen[name].shape}
    differing = _differing(fingerprint(shared), {name: frozen[name] for name in shared})
    if differing:
        name = next(iter(dict(frozen_backbones(model))))
        raise UserError(f"'{path}' holds other weights than the pretrained file for {len(differing)} of those that "
                        'peft freezes, and checkpoints of what is tuned would not find them again: freeze these by '
                        f"model.{name}.init_cfg=dict(type='Pretrained', checkpoint='{path}', prefix='{name}').")


def _load_pretrained(name, backbone, what):
    if backbone.pretrained_file is None:
        raise UserError(f'{what}, and this config does not say where the frozen weights are: set '
                        f'model.{name}.pretrained to the file of training.')
    try:
        backbone.init_weights()
    except UserError as error:
        raise UserError(f'{what}, and needs the pretrained file of training: {error}') from error


def _differing(expected, frozen):
    found = fingerprint(frozen)
    # Of one file resized by two machines, rounding may differ.
    return [name for name in {**expected, **found} if name not in found or name not in expected
            or found[name].shape != expected[name].shape
            or not torch.allclose(found[name], expected[name].cpu(), rtol=1e-3, atol=1e-5)]


def _check_tuned(model, state, backbones, path):
    """Heads are left to whoever loads: they may differ where a model is trained on."""
    tuned = tuple(f'{name}.{part}.'.removeprefix('.') for name in backbones for part in ('peft', 'token_reducer'))
    want = {name: value.shape for name, value in model.state_dict().items() if name.startswith(tuned)}
    have = {name: value.shape for name, value in state.items() if name.startswith(tuned)}
    wrong = [name for name in {**want, **have} if want.get(name) != have.get(name)]
    if wrong:
        first, sizes = wrong[0], [str(tuple(shapes[wrong[0]])) if wrong[0] in shapes else 'not there'
                                  for shapes in (have, want)]
        raise UserError(f"'{path}' was tuned with another peft or token_reduction than this config has: {len(wrong)} "
                        f'weights differ, such as {first}, {sizes[0]} in the file and {sizes[1]} in the model; set '
                        'both keys as in training.')
