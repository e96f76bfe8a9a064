"""A forward pass of MaskDINO in the release's layout, written from the formulas."""

import math

import torch
from maskdino_state import CHANNELS, DECODER, ENCODER, HEADS, PIXEL, POINTS, PREDICTOR, QUERIES
from official_layouts import layer_norm, linear
from torch.nn import functional as F

IMAGE = (64, 96)


def conv(x, state, name, **kwargs):
    return F.conv2d(x, state[f'{name}.weight'], state.get(f'{name}.bias'), **kwargs)


def group_norm(x, state, name):
    return F.group_norm(x, 32, state[f'{name}.weight'], state[f'{name}.bias'])


def mlp(x, state, name, layers):
    for i in range(layers):
        x = linear(x, state, f'{name}.layers.{i}')
        x = x if i == layers - 1 else x.clamp(min=0)
    return x


def norm(x, state, name):
    return layer_norm(x, state, name, 1e-5)


def waves(values, channels):
    """Sine and cosine of values (...), in turn, of growing wavelength."""
    out = []
    for i in range(channels):
        angle = values / 10000 ** (2 * (i // 2) / channels)
        out.append(angle.cos() if i % 2 else angle.sin())
    return torch.stack(out, -1)


def positions(height, width):
    y = torch.arange(1, height + 1) / (height + 1e-6) * 2 * math.pi
    x = torch.arange(1, width + 1) / (width + 1e-6) * 2 * math.pi
    y, x = y.view(-1, 1).expand(height, width), x.expand(height, width)
    return torch.cat((waves(y, CHANNELS // 2), waves(x, CHANNELS // 2)), -1).flatten(0, 1)


def bilinear(level, x, y):
    """Values (..., D) of a map (H, W, D) at pixels x, y (...); nothing outside."""
    height, width, _ = level.shape
    out = 0
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = y.floor() + dy, x.floor() + dx
            weight = (1 - (y - row).abs()) * (1 - (x - column).abs())
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            value = level[row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
            out = out + (weight * inside).unsqueeze(-1) * value
    return out


def deformable(query, boxes, value, shapes, state, name):
    """One image: query (Q, C); boxes (Q, L, 2 or 4); value (N, C)."""
    count, levels = len(query), len(shapes)
    value = linear(value, state, f'{name}.value_proj').unflatten(-1, (HEADS, -1))
    offsets = linear(query, state, f'{name}.sampling_offsets').view(count, HEADS, levels, POINTS, 2)
    weights = linear(query, state, f'{name}.attention_weights').view(count, HEADS, -1).softmax(-1)
    weights, out, start = weights.view(count, HEADS, levels, POINTS), torch.zeros(count, HEADS, CHANNELS // HEADS), 0
    for i, (height, width) in enumerate(shapes):
        part = value[start : start + height * width].unflatten(0, (height, width))
        start += height * width
        for head in range(HEADS):
            move, centre = offsets[:, head, i], boxes[:, i, None, :2]
            if boxes.shape[-1] == 2:
                at = centre + move / torch.tensor((width, height))
            else:
                at = centre + move / POINTS * boxes[:, i, None, 2:] * 0.5
            seen = bilinear(part[:, :, head], at[..., 0] * width - 0.5, at[..., 1] * height - 0.5)
            out[:, head] += (weights[:, head, i].unsqueeze(-1) * seen).sum(1)
    return linear(out.flatten(1), state, f'{name}.output_proj')


def ffn(x, state, name, last):
    hidden = linear(x, state, f'{name}.linear1').clamp(min=0)
    return norm(x + linear(hidden, state, f'{name}.linear2'), state, f'{name}.{last}')


def pixel_decoder(maps, state, encoded, extra, order):
    """One image: maps (1, C, H, W), finest first -> mask features (C, H, W), levels (N, C) and their shapes."""
    inputs = maps[-encoded:] if order == 'low2high' else maps[-encoded:][::-1]
    levels = [
        group_norm(conv(x, state, f'{PIXEL}.input_proj.{i}.0'), state, f'{PIXEL}.input_proj.{i}.1')
        for i, x in enumerate(inputs)
    ]
    coarse, further = maps[-1], []
    for i in range(encoded, encoded + extra):
        coarse = group_norm(
            conv(coarse, state, f'{PIXEL}.input_proj.{i}.0', stride=2, padding=1), state, f'{PIXEL}.input_proj.{i}.1'
        )
        further.append(coarse)
    levels = levels + further if order == 'low2high' else further[::-1] + levels
    shapes = [tuple(level.shape[-2:]) for level in levels]
    x = torch.cat([level[0].flatten(1).T for level in levels])
    where = torch.cat(
        [positions(*shape) + embed for shape, embed in zip(shapes, state[f'{PIXEL}.transformer.level_embed'])]
    )
    centres = torch.tensor(
        [
            ((column + 0.5) / width, (row + 0.5) / height)
            for height, width in shapes
            for row in range(height)
            for column in range(width)
        ]
    )
    for i in range(ENCODER):
        at = f'{PIXEL}.transformer.encoder.layers.{i}'
        seen = deformable(
            x + where, centres.unsqueeze(1).expand(-1, len(shapes), 2), x, shapes, state, f'{at}.self_attn'
        )
        x = ffn(norm(x + seen, state, f'{at}.norm1'), state, at, 'norm2')
    levels = x.split([height * width for height, width in shapes])
    finest = 0 if order == 'low2high' else -1
    y = levels[finest].T.unflatten(1, shapes[finest]).unsqueeze(0)
    for i in range(max(len(maps) - encoded, 1), 0, -1):
        lateral = group_norm(conv(maps[i - 1], state, f'{PIXEL}.adapter_{i}'), state, f'{PIXEL}.adapter_{i}.norm')
        y = lateral + F.interpolate(y, lateral.shape[-2:], mode='bilinear', align_corners=False)
        y = group_norm(conv(y, state, f'{PIXEL}.layer_{i}', padding=1), state, f'{PIXEL}.layer_{i}.norm').clamp(min=0)
    return conv(y, state, f'{PIXEL}.mask_features')[0], list(levels), shapes


def before_sigmoid(x):
    x = x.clamp(0, 1)
    return (x.clamp(min=1e-5) / (1 - x).clamp(min=1e-5)).log()


def mask_boxes(masks):
    """Box of each mask (Q, H, W), as centre and size; the last pixel counts."""
    boxes = torch.zeros(len(masks), 4)
    for i, mask in enumerate(masks):
        rows, columns = mask.nonzero(as_tuple=True)
        if len(rows):
            top, bottom = rows.min() / mask.shape[0], (rows.max() + 1) / mask.shape[0]
            left, right = columns.min() / mask.shape[1], (columns.max() + 1) / mask.shape[1]
            boxes[i] = torch.stack(((left + right) / 2, (top + bottom) / 2, right - left, bottom - top))
    return boxes


def first_queries(memory, shapes, state, mask_features, initial):
    """The best places as queries (Q, C), and boxes (Q, 4) before the sigmoid."""
    proposals = torch.tensor(
        [
            ((column + 0.5) / width, (row + 0.5) / height, 0.05 * 2**i, 0.05 * 2**i)
            for i, (height, width) in enumerate(shapes)
            for row in range(height)
            for column in range(width)
        ]
    )
    bad = ((proposals <= 0.01) | (proposals >= 0.99)).any(1)
    memory = torch.where(bad.unsqueeze(1), 0.0, memory)
    memory = norm(linear(memory, state, f'{PREDICTOR}.enc_output'), state, f'{PREDICTOR}.enc_output_norm')
    scores = linear(memory, state, f'{PREDICTOR}.class_embed').max(1).values
    chosen = sorted(range(len(scores)), key=lambda n: -float(scores[n]))[:QUERIES]
    query = memory[chosen]
    if initial == 'bitmask':
        masks = predict(query, state, mask_features)[1]
        return query, before_sigmoid(mask_boxes(masks > 0))
    boxes = mlp(query, state, f'{PREDICTOR}._bbox_embed', 3) + (proposals / (1 - proposals)).log()[chosen]
    return query, torch.where(bad[chosen].unsqueeze(1), torch.inf, boxes)


def predict(query, state, mask_features):
    query = norm(query, state, f'{PREDICTOR}.decoder_norm')
    embed = mlp(query, state, f'{PREDICTOR}.mask_embed', 3)
    return linear(query, state, f'{PREDICTOR}.class_embed'), torch.einsum('qc,chw->qhw', embed, mask_features)


def attend(query, position, state, name):
    weight, bias = state[f'{name}.in_proj_weight'].chunk(3), state[f'{name}.in_proj_bias'].chunk(3)
    q, k = ((query + position) @ weight[i].T + bias[i] for i in (0, 1))
    v, out = query @ weight[2].T + bias[2], []
    for q, k, v in zip(q.chunk(HEADS, 1), k.chunk(HEADS, 1), v.chunk(HEADS, 1)):  # noqa: B020
        out.append((q @ k.T / q.shape[1] ** 0.5).softmax(1) @ v)
    return linear(torch.cat(out, 1), state, f'{name}.out_proj')


def head(maps, state, encoded, extra, initial='no', order='low2high'):
    """Class logits (Q, K), boxes (Q, 4) and mask logits (Q, H, W) of one image."""
    mask_features, levels, shapes = pixel_decoder(maps, state, encoded, extra, order)
    memory, shapes = torch.cat(levels[::-1]), shapes[::-1]
    if f'{PREDICTOR}.query_feat.weight' in state:
        query, boxes = state[f'{PREDICTOR}.query_feat.weight'], state[f'{PREDICTOR}.query_embed.weight']
    else:
        query, boxes = first_queries(memory, shapes, state, mask_features, initial)
    boxes = boxes.sigmoid()
    for i in range(DECODER):
        at = f'{PREDICTOR}.decoder.layers.{i}'
        where = torch.cat([waves(boxes[:, n] * 2 * math.pi, CHANNELS // 2) for n in (1, 0, 2, 3)], 1)
        where = mlp(where, state, f'{PREDICTOR}.decoder.ref_point_head', 2)
        query = norm(query + attend(query, where, state, f'{at}.self_attn'), state, f'{at}.norm2')
        seen = deformable(
            query + where, boxes.unsqueeze(1).expand(-1, len(shapes), 4), memory, shapes, state, f'{at}.cross_attn'
        )
        query = ffn(norm(query + seen, state, f'{at}.norm1'), state, at, 'norm3')
        before = boxes
        boxes = (before_sigmoid(before) + mlp(query, state, f'{PREDICTOR}._bbox_embed', 3)).sigmoid()
    query = norm(query, state, f'{PREDICTOR}.decoder_norm')
    boxes = (before_sigmoid(before) + mlp(query, state, f'{PREDICTOR}._bbox_embed', 3)).sigmoid()
    scores, masks = predict(query, state, mask_features)
    return scores, boxes, masks
