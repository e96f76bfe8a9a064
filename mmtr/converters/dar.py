"""Convert the official DAR-TR-PEFT checkpoints, plain or distilled, to ``EncoderDecoder`` on ``mmtr.DINOv2``.

The release stores only the tuned weights: the file of the DINOv2 backbone must lie beside it.
"""

from pathlib import Path

from torch import Tensor

from mmtr.errors import UserError

from . import dinov2
from .vit import SIZES, Notes, depth, need, rename

KIND = 'an official DAR checkpoint'
# Distilled checkpoints also hold parts for training only: the teacher and two MLPs.
TRAINING_ONLY = ('d_head_s.', 'd_head_t.', 'backbone_t.')
# Names in block {i} of the release -> in the backbone; each module has a weight and a bias.
BRANCHES = {
    'adapter.down_proj': 'peft.adapters.{i}.down',
    'adapter.up_proj': 'peft.adapters.{i}.up',
    'compensator.down_conv1': 'peft.compensators.{i}.down',
    'compensator.down_conv2.0': 'peft.compensators.{i}.depthwise',
    'compensator.down_conv2.1': 'peft.compensators.{i}.mix',
    'compensator.up_conv': 'peft.compensators.{i}.up',
    'token_mask_gen.conv': 'token_reducer.selectors.{i}',
}
SCALE = 'peft.scales.{i}.weight'
# These 1x1 convolutions of the release are linear layers here.
LINEAR = ('compensator.down_conv1', 'compensator.down_conv2.1', 'compensator.up_conv')
CONVOLUTIONS = {'decode_head.convs.0.': 'decode_head.conv.', 'decode_head.fusion_conv.': 'decode_head.fusion_conv.'}


def read(path: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Read (state, base): the tuned weights, and the official DINOv2 file in the same folder.

    Raises:
        UserError: A file cannot be read, or the DINOv2 file is not there.
    """
    state = dinov2.read(path)[0]
    dim = need(state, 'backbone.blocks.0.adapter.down_proj.weight', KIND).shape[1]
    letter = {width: size for (width, _), (size, _) in SIZES.items()}.get(dim, '?')
    name = f'dinov2_vit{letter}14_pretrain.pth'
    file = Path(path).with_name(name)
    if not file.is_file():
        raise UserError(
            f"'{path}' holds only what was tuned: put the DINOv2 that it was tuned on beside it, as {name}."
        )
    return state, dinov2.read(file)[0]


def convert(state: dict[str, Tensor], base: dict[str, Tensor]) -> tuple[dict[str, Tensor], Notes]:
    """Convert the release's keys and those of its DINOv2 to ``backbone.*`` and ``decode_head.*``.

    Args:
        state: The tuned weights.
        base: The weights of the official DINOv2.

    Raises:
        UserError: The weights are not those of an official DAR checkpoint, or ``base`` is of another size.
    """
    layers = depth(state, r'backbone\.blocks\.(\d+)\.')
    dim = need(state, 'backbone.blocks.0.adapter.down_proj.weight', KIND).shape[1]
    weight = need(state, 'decode_head.conv_seg.weight', KIND)
    outputs, channels = weight.shape[:2]
    table = {
        'decode_head.conv_seg.weight': ('decode_head.conv_seg.weight', weight.shape),
        'decode_head.conv_seg.bias': ('decode_head.conv_seg.bias', (outputs,)),
    }
    for i in range(layers):
        table.update(_block_table(state, i))
    for (old, new), width in zip(CONVOLUTIONS.items(), (dim, channels)):
        table[f'{old}conv.weight'] = (f'{new}conv.weight', (channels, width, 1, 1))
        for key in ('weight', 'bias', 'running_mean', 'running_var'):
            table[f'{old}bn.{key}'] = (f'{new}bn.{key}', (channels,))
        table[f'{old}bn.num_batches_tracked'] = (f'{new}bn.num_batches_tracked', ())
    converted = rename(state, table, KIND, [key for key in state if key.startswith(TRAINING_ONLY)])
    for i in range(layers):
        for old in LINEAR:
            key = f'backbone.{BRANCHES[old].format(i=i)}.weight'
            converted[key] = converted[key].flatten(1)

    frozen, base_notes = dinov2.convert(base)
    settings = base_notes.settings
    if (settings['backbone.embed_dims'], settings['backbone.num_layers']) != (dim, layers):
        raise UserError(
            f'The DINOv2 beside it has {settings["backbone.num_layers"]} layers of '
            f'{settings["backbone.embed_dims"]} channels; {layers} layers of {dim} were tuned.'
        )
    converted.update({f'backbone.{key}': value for key, value in frozen.items()})
    settings.update(
        {
            # The release's settings, which differ from DINOv2's and matter at other sizes than 518.
            'backbone.interpolate_antialias': True,
            'backbone.interpolate_offset': 0.0,
            'backbone.token_reduction.type': 'DAR',
            'backbone.peft.type': 'DAR',
            'backbone.peft.bottleneck': len(state['backbone.blocks.0.adapter.down_proj.weight']),
            'backbone.peft.compensator': len(state['backbone.blocks.0.compensator.down_conv1.weight']),
            'decode_head.channels': channels,
            'decode_head.num_classes': max(outputs, 2),
            'decode_head.out_channels': outputs,
        }
    )
    letter = SIZES.get((dim, layers), (None,))[0]
    notes = Notes(dict(source='dar', settings=settings), settings, letter and f'dinov2-{letter}_dar_*.py')
    notes.remarks = ['The whole model is in it: DINOv2, what was tuned, and the head. The task is not in the file.']
    return converted, notes


def _block_table(state, i):
    source = f'backbone.blocks.{i}.'
    need(state, f'{source}compensator.down_conv1.weight', KIND)
    adapter, dim = need(state, f'{source}adapter.down_proj.weight', KIND).shape
    hidden = len(state[f'{source}compensator.down_conv1.weight'])
    shapes = {
        'adapter.down_proj': (adapter, dim),
        'adapter.up_proj': (dim, adapter),
        'compensator.down_conv1': (hidden, dim, 1, 1),
        'compensator.down_conv2.0': (hidden, 1, 3, 3),
        'compensator.down_conv2.1': (hidden, hidden, 1, 1),
        'compensator.up_conv': (dim, hidden, 1, 1),
        'token_mask_gen.conv': (1, dim, 3, 3),
    }
    table = {f'{source}scale': (f'backbone.{SCALE.format(i=i)}', ())}
    for old, shape in shapes.items():
        new = f'backbone.{BRANCHES[old].format(i=i)}'
        table[f'{source}{old}.weight'] = (f'{new}.weight', shape)
        table[f'{source}{old}.bias'] = (f'{new}.bias', shape[:1])
    return table
