"""Checkpoints without frozen weights: leave them out, recognise them by a fingerprint, and put them back."""

from collections import OrderedDict
from typing import Optional

import torch
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.peft.freezing import frozen_backbones, frozen_part, frozen_state

#: Key of the fingerprint of the frozen weights in the state dict's ``_metadata`` of a backbone. torch stores the
#: versions of modules in ``_metadata`` and hands it to the module that is loaded, whichever code loads it.
META = 'frozen_weights'
#: Key in a checkpoint's ``meta``: names of other state dicts without frozen weights -> prefix of the names in each.
COPIES = 'frozen_weights_of'
_SAMPLES = 16


def weights_in(checkpoint: dict) -> dict[str, Tensor]:
    """Return the ``state_dict`` of a checkpoint, or the checkpoint if it has none, without the prefix ``module.``."""
    return {name.removeprefix('module.'): value for name, value in checkpoint.get('state_dict', checkpoint).items()}


def fingerprint(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take up to 16 evenly spaced values of each weight, in float32 on the CPU.

    Values can be compared with a tolerance; a hash would change with any other rounding.
    """
    found = {}
    for name, value in state.items():
        count = min(value.numel(), _SAMPLES)
        index = torch.arange(count, device=value.device) * (value.numel() - 1) // max(count - 1, 1)
        found[name] = value.detach().flatten()[index].float().cpu()
    return found


def take_out_frozen(model: nn.Module, checkpoint: dict) -> None:
    """Replace the frozen weights in a checkpoint by their fingerprint, in place.

    Other state dicts of the whole model in the checkpoint, such as that of ``EMAHook``, lose them too. A weight that
    differs from the model's stays: a hook has changed it.
    """
    frozen, state = frozen_state(model), checkpoint['state_dict']
    metadata = OrderedDict(getattr(state, '_metadata', {}))
    for path, backbone in frozen_backbones(model):
        metadata[path] = {**metadata.get(path, {}), META: fingerprint(frozen_part(backbone))}
    checkpoint['state_dict'] = _without(state, frozen, '', metadata)
    for key, prefix in _copies(checkpoint, frozen).items():
        checkpoint[key] = _without(checkpoint[key], frozen, prefix, getattr(checkpoint[key], '_metadata', {}))
        checkpoint['meta'].setdefault(COPIES, {})[key] = prefix


def put_in_frozen(model: nn.Module, checkpoint: dict, path: str) -> None:
    """Complete a checkpoint without frozen weights by those of ``model``, in place; other checkpoints stay as they are.

    If the frozen weights of the model are not those of the fingerprint, the model loads them from the pretrained file
    of its ``init_cfg``.

    Raises:
        UserError: The model has no pretrained file, or the file cannot be read or holds other weights; or the model
            has another ``peft`` or ``token_reduction`` than the checkpoint.
    """
    state = checkpoint.get('state_dict', checkpoint)
    metadata, backbones = OrderedDict(getattr(state, '_metadata', {})), dict(frozen_backbones(model))
    meta = checkpoint.get('meta') or {}
    expected = {name: said[META] for name, said in metadata.items() if META in said}
    older = meta.pop(META, {})  # older files: the fingerprint lies here, with the prefix of the backbone
    if not expected and not older:
        return
    what = f"'{path}' holds only what was tuned"
    if not backbones:
        raise UserError(f'{what}, and the model of this config has no peft: set model.backbone.peft as in training.')
    for name, backbone in backbones.items():
        prefix = f'{name}.' if name else ''
        find_frozen(
            backbone,
            name,
            expected.get(name)
            or {each.removeprefix(prefix): value for each, value in older.items() if each.startswith(prefix)},
            what,
        )
        _check_tuned(backbone, prefix, weights_in(checkpoint), f"'{path}'")
    frozen = frozen_state(model)
    for name in backbones:  # no fingerprint is left, so that the next reader takes the checkpoint for complete
        metadata[name] = {key: value for key, value in metadata.get(name, {}).items() if key != META}
    checkpoint['state_dict'] = _with(weights_in(checkpoint), frozen, '', metadata)
    for key, prefix in meta.pop(COPIES, {}).items():
        checkpoint[key] = _with(checkpoint[key], frozen, prefix, getattr(checkpoint[key], '_metadata', {}))


def complete(backbone: nn.Module, state: dict[str, Tensor], prefix: str, metadata: dict) -> None:
    """Complete a state dict without frozen weights before ``backbone`` loads it, in place.

    Loaders that do not know ``peft`` would leave the missing weights as they are.

    Args:
        state: State dict of the whole model. It stays as it is if it has all weights, or no weights of a ``peft``.
        prefix: Prefix of the backbone's names in ``state``.
        metadata: Entry of the backbone in the state dict's ``_metadata``.

    Raises:
        UserError: The backbone has no ``peft``; or it has neither the frozen weights nor a pretrained file with them.
    """
    expected = metadata.get(META)
    own = frozen_part(backbone) if backbone.peft is not None else backbone.state_dict()
    parameters = {prefix + name: own[name].shape for name, _ in backbone.named_parameters() if name in own}
    if all(getattr(state.get(name), 'shape', None) == shape for name, shape in parameters.items()):
        backbone.has_frozen_weights = True
        return
    if expected is None and not any(name.startswith(f'{prefix}peft.') for name in state):
        return
    what = 'The weights to be loaded are only those that were tuned'
    if backbone.peft is None:
        raise UserError(f'{what}, and the backbone has no peft: set model.backbone.peft as in training.')
    find_frozen(
        backbone,
        prefix.rstrip('.'),
        expected,
        what,
        remedy=(
            ', or, where an init_model of others takes that key away, use mmtr.init_model, or write one whole file '
            'with tools/deploy_model.py'
        ),
    )
    if expected is not None:
        _check_tuned(backbone, prefix, state, 'What is to be loaded')
    for name, value in frozen_part(backbone).items():
        state.setdefault(prefix + name, value)


def find_frozen(
    backbone: nn.Module, name: str, expected: Optional[dict[str, Tensor]], what: str, remedy: str = ''
) -> None:
    """Load a backbone's pretrained file, unless the backbone has the expected frozen weights already.

    Args:
        name: Name of the backbone in the model.
        expected: Fingerprint of the frozen weights; None: any weights that were loaded are accepted.
        what: First half of the sentence of an error.
        remedy: End of the error for a backbone without a pretrained file.

    Raises:
        UserError: There is no pretrained file, it cannot be read, or it holds other weights.
    """
    if backbone.has_frozen_weights if expected is None else not _differing(expected, frozen_part(backbone)):
        return
    if backbone.pretrained_file is None:
        raise UserError(
            f'{what}, and this config does not say where the frozen weights are: set model.{name or "backbone"}.'
            f'pretrained to the file of training{remedy}.'
        )
    try:
        backbone.load_pretrained()
    except UserError as error:
        raise UserError(f'{what}, and needs the pretrained file of training: {error}') from error
    differing = [] if expected is None else _differing(expected, frozen_part(backbone))
    if differing:
        raise UserError(
            f"{what}, and the pretrained file '{backbone.pretrained_file}' is not the one that it was tuned with: "
            f'{len(differing)} of {len(expected)} weights differ, such as {f"{name}.{differing[0]}".lstrip(".")}.'
        )


def check_pretrained(model: nn.Module) -> None:
    """Raise a ``UserError`` unless each backbone with ``peft`` has a pretrained file."""
    for name, backbone in frozen_backbones(model):
        if backbone.pretrained_file is None:
            raise UserError(
                f'{name or "backbone"}.peft freezes the weights of the backbone, and there are none to freeze: set '
                f'model.{name or "backbone"}.pretrained to their file. A whole model in load_from would not do, for '
                'checkpoints hold only what is tuned.'
            )


def check_same_frozen(model: nn.Module, checkpoint: dict, path: str) -> None:
    """Raise a ``UserError`` if a complete checkpoint differs from the model in weights that are frozen."""
    state = weights_in(checkpoint)
    frozen = frozen_state(model)
    # Weights of another shape are not loaded; CheckpointCoverageHook reports them.
    shared = {name: value for name, value in state.items() if name in frozen and value.shape == frozen[name].shape}
    differing = _differing(fingerprint(shared), {name: frozen[name] for name in shared})
    if differing:
        name = next(iter(dict(frozen_backbones(model))))
        raise UserError(
            f"'{path}' holds other weights than the pretrained file for {len(differing)} of those that "
            'peft freezes, and checkpoints of what is tuned would not find them again: freeze these by '
            f"model.{name}.init_cfg=dict(type='Pretrained', checkpoint='{path}', prefix='{name}')."
        )


def _copies(checkpoint, frozen):
    """Map the keys of other state dicts of the whole model in a checkpoint to the prefix of the names in each."""
    first, found = next(iter(frozen)), {}
    for key, value in checkpoint.items():
        if key == 'state_dict' or not isinstance(value, dict):
            continue
        for name in value:
            prefix = str(name)[: -len(first)]
            if str(name).endswith(first) and all(prefix + each in value for each in frozen):
                found[key] = prefix
    return found


def _state(items, metadata):
    state = OrderedDict(items)
    state._metadata = metadata
    return state


def _without(state, frozen, prefix, metadata):
    gone = {prefix + name: value for name, value in frozen.items()}
    return _state(
        (
            (name, value)
            for name, value in state.items()
            if name not in gone
            or (value.shape, value.dtype) != (gone[name].shape, gone[name].dtype)
            or not torch.equal(value.to(gone[name].device), gone[name])
        ),
        metadata,
    )


def _with(state, frozen, prefix, metadata):
    device = next((value.device for value in state.values() if isinstance(value, Tensor)), None)
    # Copies: a hook may change what is in a checkpoint.
    added = (
        (prefix + name, value.detach().to(device, copy=True))
        for name, value in frozen.items()
        if prefix + name not in state
    )
    return _state((*state.items(), *added), metadata)


def _differing(expected, frozen):
    found = fingerprint(frozen)
    # Two machines may resize the weights of one file with different rounding.
    return [
        name
        for name in {**expected, **found}
        if name not in found
        or name not in expected
        or found[name].shape != expected[name].shape
        or not torch.allclose(found[name], expected[name].cpu(), rtol=1e-3, atol=1e-5)
    ]


def _check_tuned(backbone, prefix, state, what):
    """Raise a ``UserError`` if ``peft`` and reducer differ from the model's; heads may differ in further training."""
    tuned = tuple(f'{prefix}{part}.' for part in ('peft', 'token_reducer'))
    want, have = (
        {name: value.shape for name, value in each.items() if name.startswith(tuned)}
        for each in (backbone.state_dict(prefix=prefix), state)
    )
    wrong = [name for name in {**want, **have} if want.get(name) != have.get(name)]
    if wrong:
        first, sizes = (
            wrong[0],
            [str(tuple(shapes[wrong[0]])) if wrong[0] in shapes else 'not there' for shapes in (have, want)],
        )
        raise UserError(
            f'{what} was tuned with another peft or token_reduction than this config has: {len(wrong)} '
            f'weights differ, such as {first}, {sizes[0]} in the file and {sizes[1]} in the model; set '
            'both keys as in training.'
        )
