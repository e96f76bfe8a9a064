"""Descriptions of reducers, in one line each, for the log."""

from torch import nn

from mmtr.errors import UserError

from .base import TokenReducer
from .reduces import reduces
from .windowed import Windowed


def in_words(reducer: TokenReducer) -> str:
    """Describe a reducer, as ``TokenAdapter: 690 -> 336 patch tokens from layer 5, in images of 23x30 patches``.

    Token counts are those of a training image; in a Swin, those of a window; in a backbone with spatial reduction,
    those of an image of 512x512 pixels.
    """
    backbone, acts = reducer.backbone, reducer.inner if isinstance(reducer, Windowed) else reducer
    if backbone.depths is not None:
        return f'{reducer.name}: within the attention of all {len(backbone.depths)} stages'
    height, width = backbone.grid
    if not backbone.needs_grid:
        tokens, layer, where = 'patch tokens', 'layer', f', in images of {height}x{width} patches'
    elif backbone.in_windows:
        tokens, layer, where = 'tokens of a window', 'block', f', in stage {backbone.stage}'
    else:
        tokens, layer, where = 'tokens', 'block', f', in stage {backbone.stage}, where it has {height}x{width} tokens'
    count = height * width
    try:
        schedule = acts.token_schedule(backbone.grid, backbone.depth)
    except UserError as error:  # larger images may fit
        return f'{reducer.name}{where}: {error}'
    fewer = [i for i, n in enumerate(schedule) if n < count]
    if fewer and not acts.gives_back(backbone.grid):
        reads = 'reads the class token alone' if backbone.output == 'class_token' else 'takes the mean of what is left'
        where += f'; the head {reads}: nothing is given back'
    if not reducer.fixed_count:
        start = f' from {layer} {fewer[0]}' if fewer else ''
        return f'{reducer.name}: how many of {count} {tokens} are computed on depends on the image{start}{where}'
    if not fewer:
        return f'{reducer.name}: nothing is reduced by these settings{where}'
    span = f'from {layer} {fewer[0]}' + (f' to {fewer[-1]}' if fewer[-1] < backbone.depth - 1 else '')
    steps = ', step by step' if len({schedule[i] for i in fewer}) > 1 else ''
    return f'{reducer.name}: {count} -> {min(schedule)} {tokens}{steps} {span}{where}'


def reductions_in_words(model: nn.Module) -> list[str]:
    """Describe the reducer of each backbone in ``model`` that reduces tokens, with ``in_words``."""
    reducers = [module.token_reducer for module in model.modules() if hasattr(module, 'set_token_reduction')]
    return [in_words(reducer) for reducer in reducers if reduces(reducer)]
