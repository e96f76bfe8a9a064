"""Freezing of a backbone with ``peft``: every child that is not in its ``trained_parts``."""

from collections.abc import Iterator

from torch import Tensor, nn

from mmtr.words import aligned_rows


def frozen_modules(backbone: nn.Module) -> list[nn.Module]:
    """Return the frozen children of a backbone with ``peft``."""
    return [module for name, module in backbone.named_children() if name not in backbone.trained_parts]


def freeze(backbone: nn.Module) -> None:
    """Freeze the parameters outside ``trained_parts``, and put their modules in eval mode."""
    for name, parameter in backbone.named_parameters():
        if name.partition('.')[0] not in backbone.trained_parts:
            parameter.requires_grad = False
    for module in frozen_modules(backbone):
        module.eval()


def frozen_backbones(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the names and modules of all backbones in ``model`` that have a ``peft``."""
    return ((name, module) for name, module in model.named_modules() if getattr(module, 'peft', None) is not None)


def frozen_part(backbone: nn.Module) -> dict[str, Tensor]:
    """Return the frozen part of the state dict of a backbone with ``peft``, parameters and buffers."""
    return {
        name: value
        for name, value in backbone.state_dict().items()
        if name.partition('.')[0] not in backbone.trained_parts
    }


def frozen_state(model: nn.Module) -> dict[str, Tensor]:
    """Return the part of the state dict of ``model`` that a ``peft`` freezes, parameters and buffers."""
    return {
        f'{path}.{name}'.removeprefix('.'): value
        for path, backbone in frozen_backbones(model)
        for name, value in frozen_part(backbone).items()
    }


def table(model: nn.Module) -> str:
    """Format the numbers of trainable and frozen parameters of each child of ``model``, and of each trained part."""
    inside = {
        f'{path}.{name}'.removeprefix('.'): part
        for path, backbone in frozen_backbones(model)
        for name, part in backbone.named_children()
        if name in backbone.trained_parts
    }
    parts = {**dict(model.named_children()), **inside, 'all': model}
    rows = [('module', 'trainable', 'frozen', 'trainable %')]
    for name in sorted(parts, key=lambda name: (name == 'all', name)):
        counts = [p.numel() for p in parts[name].parameters()]
        trained = sum(p.numel() for p in parts[name].parameters() if p.requires_grad)
        if counts:
            rows.append((name, f'{trained:,}', f'{sum(counts) - trained:,}', f'{100 * trained / sum(counts):.2f}'))
    return aligned_rows(rows)
