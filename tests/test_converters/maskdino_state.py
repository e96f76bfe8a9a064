"""Names and shapes in the release's files of MaskDINO, with random weights."""

import torch
from official_layouts import draw, linear_shapes, norm_shapes

CHANNELS, HIDDEN, HEADS, POINTS, QUERIES, ENCODER, DECODER, CLASSES = 64, 16, 8, 4, 10, 2, 2, 5
PIXEL, PREDICTOR = 'sem_seg_head.pixel_decoder', 'sem_seg_head.predictor'


def conv_shapes(name, n_in, n_out, size, bias):
    return {f'{name}.weight': (n_out, n_in, size, size), **({f'{name}.bias': (n_out,)} if bias else {})}


def mlp_shapes(name, widths):
    shapes = {}
    for i, (n_in, n_out) in enumerate(zip(widths, widths[1:])):
        shapes.update(linear_shapes(f'{name}.layers.{i}', n_in, n_out))
    return shapes


def deformable_shapes(name, levels):
    return {
        **linear_shapes(f'{name}.sampling_offsets', CHANNELS, HEADS * levels * POINTS * 2),
        **linear_shapes(f'{name}.attention_weights', CHANNELS, HEADS * levels * POINTS),
        **linear_shapes(f'{name}.value_proj', CHANNELS, CHANNELS),
        **linear_shapes(f'{name}.output_proj', CHANNELS, CHANNELS),
    }


def ffn_shapes(name):
    return {**linear_shapes(f'{name}.linear1', CHANNELS, HIDDEN), **linear_shapes(f'{name}.linear2', HIDDEN, CHANNELS)}


def head_shapes(widths, encoded, extra, learned=False, order='low2high'):
    """Of a backbone with maps of ``widths``; ``learned``: learned queries and a class for "no object"."""
    shapes, levels = {f'{PIXEL}.transformer.level_embed': (encoded + extra, CHANNELS)}, encoded + extra
    inputs = list(widths[-encoded:]) if order == 'low2high' else list(widths[-encoded:])[::-1]
    for i, width in enumerate(inputs + [widths[-1], CHANNELS, CHANNELS][:extra]):
        shapes.update(conv_shapes(f'{PIXEL}.input_proj.{i}.0', width, CHANNELS, 1 if i < encoded else 3, True))
        shapes.update(norm_shapes(f'{PIXEL}.input_proj.{i}.1', CHANNELS))
        shapes[f'{PIXEL}.input_proj.{i}.1.weight'] = (CHANNELS,)
    for i in range(ENCODER):
        at = f'{PIXEL}.transformer.encoder.layers.{i}'
        shapes.update({**deformable_shapes(f'{at}.self_attn', levels), **ffn_shapes(at)})
        shapes.update({**norm_shapes(f'{at}.norm1', CHANNELS), **norm_shapes(f'{at}.norm2', CHANNELS)})
    for i in range(max(len(widths) - encoded, 1)):
        for name, width, size in (('adapter', widths[i], 1), ('layer', CHANNELS, 3)):
            shapes.update(conv_shapes(f'{PIXEL}.{name}_{i + 1}', width, CHANNELS, size, False))
            shapes.update(norm_shapes(f'{PIXEL}.{name}_{i + 1}.norm', CHANNELS))
    shapes.update(conv_shapes(f'{PIXEL}.mask_features', CHANNELS, CHANNELS, 1, True))
    for i in range(DECODER):
        at = f'{PREDICTOR}.decoder.layers.{i}'
        shapes.update(
            {
                **deformable_shapes(f'{at}.cross_attn', levels),
                **ffn_shapes(at),
                f'{at}.self_attn.in_proj_weight': (3 * CHANNELS, CHANNELS),
                f'{at}.self_attn.in_proj_bias': (3 * CHANNELS,),
                **linear_shapes(f'{at}.self_attn.out_proj', CHANNELS, CHANNELS),
            }
        )
        for j in (1, 2, 3):
            shapes.update(norm_shapes(f'{at}.norm{j}', CHANNELS))
    shapes.update(
        {
            **mlp_shapes(f'{PREDICTOR}.decoder.ref_point_head', [2 * CHANNELS, CHANNELS, CHANNELS]),
            **norm_shapes(f'{PREDICTOR}.decoder_norm', CHANNELS),
            **linear_shapes(f'{PREDICTOR}.class_embed', CHANNELS, CLASSES + learned),
            f'{PREDICTOR}.label_enc.weight': (CLASSES, CHANNELS),
            **mlp_shapes(f'{PREDICTOR}.mask_embed', [CHANNELS] * 4),
            **mlp_shapes(f'{PREDICTOR}._bbox_embed', [CHANNELS] * 3 + [4]),
        }
    )
    if learned:
        shapes.update(
            {f'{PREDICTOR}.query_feat.weight': (QUERIES, CHANNELS), f'{PREDICTOR}.query_embed.weight': (QUERIES, 4)}
        )
    else:
        shapes.update(
            {
                **linear_shapes(f'{PREDICTOR}.enc_output', CHANNELS, CHANNELS),
                **norm_shapes(f'{PREDICTOR}.enc_output_norm', CHANNELS),
            }
        )
    return shapes


def head_state(*args, seed=0, **kwargs):
    """Weights under the release's keys, with its second and third names for one box head and one norm."""
    shapes = head_shapes(*args, **kwargs)
    state = draw(shapes, seed)
    for key in shapes:  # weights as large as trained ones: boxes and masks that differ
        if not any(part in key for part in ('norm', 'input_proj', 'ref_point_head')):
            state[key] = state[key] * 2
    for i in range(DECODER):
        for name in (f'{PREDICTOR}.bbox_embed.{i}', f'{PREDICTOR}.decoder.bbox_embed.{i}'):
            state.update(
                {
                    name + key[len(f'{PREDICTOR}._bbox_embed') :]: value
                    for key, value in list(state.items())
                    if key.startswith(f'{PREDICTOR}._bbox_embed')
                }
            )
    for kind in ('weight', 'bias'):
        state[f'{PREDICTOR}.decoder.norm.{kind}'] = state[f'{PREDICTOR}.decoder_norm.{kind}']
    state['criterion.empty_weight'] = torch.ones(CLASSES + 1)
    return state
