"""EoMT against its forward pass written out, with masks and reduced; its losses, errors and fusion head."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.seg_heads import MaskFormerFusionHead
from mmdet.structures import DetDataSample
from mmdet.structures.mask import BitmapMasks
from mmengine.config import ConfigDict
from mmengine.structures import InstanceData, PixelData

from mmtr.models.backbones.common.attention import TokenAttention
from mmtr.models.backbones.common.queries import QueriesSee
from mmtr.registry import MODELS, TOKEN_REDUCERS

TOKEN_REDUCERS.import_from_location()
CHANNELS, LAYERS, QUERIES, JOINED, SIDE = 32, 8, 7, 3, 96
HEAD = dict(in_channels=CHANNELS, num_queries=QUERIES, num_query_layers=JOINED, num_points=64)


def vit(**kwargs):
    shape = dict(img_size=SIDE, patch_size=16, num_registers=2, embed_dims=CHANNELS, num_layers=LAYERS, num_heads=2)
    return dict(type='mmtr.DINOv2', **{**shape, **kwargs})


def drawn(cfg):
    """A model in eval mode whose LayerScale and norms are far from their start, so that mistakes show."""
    torch.manual_seed(0)
    model = MODELS.build(ConfigDict(cfg)).eval()
    for name, parameter in model.named_parameters():
        torch.nn.init.normal_(parameter, *((0.5, 0.1) if 'gamma' in name else (0.0, 0.15)))
    return model


def eomt(head=None, test_cfg=None, data_preprocessor=None, mean=(0.0,) * 3, std=(1.0,) * 3, **backbone):
    classes = dict(num_things_classes=3, num_stuff_classes=2)
    return drawn(
        dict(
            type='mmtr.EoMT',
            data_preprocessor=data_preprocessor or dict(type='mmdet.DetDataPreprocessor', pad_size_divisor=SIDE),
            backbone=vit(**backbone),
            panoptic_head=dict(type='mmtr.EoMTHead', **classes, **{**HEAD, **(head or {})}),
            test_cfg=test_cfg,
            mean=mean,
            std=std,
        )
    )


def images(count=2, seed=1):
    return torch.randn(count, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def predictions(model, x, prob=0.0):
    """All predictions in training, with masks of this probability; in inference, if it is 0, the last."""
    model.train(prob > 0)
    model.panoptic_head.mask_probs.fill_(prob)
    with torch.no_grad():
        return list(zip(*model.panoptic_head(model.extract_feat(x))))


def written_out(state, x, masked):
    """All predictions of EoMT by dense masks: queries come first, as in the release, then class and registers.

    ``masked`` (layers with queries, B, Q) says which queries see their masks alone; None: no masks.
    """
    state = {name.replace('panoptic_head.', ''): value for name, value in state.items()}

    def linear(x, name):
        return F.linear(x, state[f'{name}.weight'], state[f'{name}.bias'])

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], state[f'{name}.weight'], state[f'{name}.bias'], 1e-6)

    embedding = (state[f'backbone.patch_embed.projection.{kind}'] for kind in ('weight', 'bias'))
    patches = F.conv2d(x, *embedding, stride=16).flatten(2).transpose(1, 2)
    own = torch.cat([state['backbone.cls_token'].expand(len(x), -1, -1), patches], 1) + state['backbone.pos_embed']
    registers = state['backbone.register_tokens'].expand(len(x), -1, -1)
    tokens, found = torch.cat([own[:, :1], registers, own[:, 1:]], 1), []

    def predict():
        after = norm(tokens, 'backbone.ln1')
        y = after[:, -patches.shape[1] :].transpose(1, 2).unflatten(2, (SIDE // 16, SIDE // 16))
        for i in range(2):
            y = F.gelu(F.conv_transpose2d(y, *(state[f'upscale.{i}.conv1.{k}'] for k in ('weight', 'bias')), stride=2))
            y = F.conv2d(y, state[f'upscale.{i}.conv2.weight'], padding=1, groups=CHANNELS)
            y = norm(y.permute(0, 2, 3, 1), f'upscale.{i}.norm').permute(0, 3, 1, 2)
        q = after[:, :QUERIES]
        kernel = linear(F.gelu(linear(F.gelu(linear(q, 'mask_embed.0')), 'mask_embed.2')), 'mask_embed.4')
        return linear(q, 'class_embed'), (kernel @ y.flatten(2)).unflatten(2, y.shape[2:])

    for i in range(LAYERS):
        k, allowed = i - (LAYERS - JOINED), None
        if k == 0:
            tokens = torch.cat([state['query.weight'].expand(len(x), -1, -1), tokens], 1)
        if k >= 0 and masked is not None:
            found.append(predict())
            small = F.interpolate(found[-1][1], (SIDE // 16, SIDE // 16), mode='bilinear').flatten(2)
            allowed = torch.ones(len(x), tokens.shape[1], tokens.shape[1], dtype=torch.bool)
            allowed[:, :QUERIES, -patches.shape[1] :] = (small > 0) | ~masked[k].unsqueeze(2)
        name = f'backbone.layers.{i}'
        qkv = F.linear(
            norm(tokens, f'{name}.ln1'), *(state[f'{name}.attn.attn.in_proj_{kind}'] for kind in ('weight', 'bias'))
        )
        q, key, v = qkv.unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        logits = q @ key.transpose(2, 3) / (CHANNELS // 2) ** 0.5
        if allowed is not None:
            logits = logits.masked_fill(~allowed.unsqueeze(1), -torch.inf)
        out = linear((logits.softmax(-1) @ v).transpose(1, 2).flatten(2), f'{name}.attn.attn.out_proj')
        tokens = tokens + out * state[f'{name}.attn.gamma1.weight']
        hidden = F.gelu(linear(norm(tokens, f'{name}.ln2'), f'{name}.ffn.layers.0.0'))
        tokens = tokens + linear(hidden, f'{name}.ffn.layers.1') * state[f'{name}.ffn.gamma2.weight']
    return [*found, predict()]


@pytest.mark.parametrize('prob', [0.0, 0.5, 1.0])
def test_predictions_are_those_of_the_paper(prob, monkeypatch):
    model, x = eomt(), images()
    draws = torch.rand(JOINED, len(x), QUERIES, generator=torch.Generator().manual_seed(2))
    left = list(draws)
    monkeypatch.setattr(torch, 'rand', lambda *args, **kwargs: left.pop(0))
    own = predictions(model, x, prob)
    with torch.no_grad():
        expected = written_out(model.state_dict(), x, draws < prob if prob else None)
    assert len(own) == len(expected) == (JOINED + 1 if prob else 1)
    for ours, theirs in zip(own, expected):
        for a, b in zip(ours, theirs):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize('with_queries', [False, True])
@pytest.mark.parametrize('name', sorted(TOKEN_REDUCERS.module_dict))
def test_every_method_reduces(name, with_queries, monkeypatch):
    settings = dict(num_classes=5, task='multilabel') if name == 'Cropr' else {}
    model = eomt(dict(reduce_with_queries=with_queries), token_reduction=dict(type=name, **settings))
    x, seen = images(3), []
    for layer in model.backbone.layers:
        layer.attn.attn.out_proj.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    (alone,), (together,) = predictions(model, x[1:2]), predictions(model, x)
    for a, b in zip(alone, together):
        torch.testing.assert_close(a, b[1:2], atol=1e-4, rtol=1e-4)
    prefix = [3 + QUERIES * (i >= LAYERS - JOINED) for i in range(LAYERS)]
    if model.backbone.token_reducer.fixed_count and name != 'SegFormerPlusPlus':
        assert [n - p for n, p in zip(seen, prefix)] == model.backbone.token_schedule((SIDE, SIDE))
    assert with_queries or all(n - p == 36 for n, p in zip(seen[-JOINED:], prefix[-JOINED:]))
    # Queries that see all patches are queries without masks, whatever stands for a patch.
    monkeypatch.setattr(
        type(model.panoptic_head), '_visible', lambda self, masks, *args: torch.ones(*masks.shape[:2], 36).bool()
    )
    model.train()
    model.backbone.eval()
    model.panoptic_head.mask_probs.fill_(1.0)
    with torch.no_grad():
        *_, seeing_all = zip(*model.panoptic_head(model.extract_feat(x)))
    for a, b in zip(seeing_all, together):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


class Plain(TokenAttention):
    """Attention without projections."""

    backend = 'math'

    def project(self, x):
        return x


@pytest.mark.parametrize('sizes', [[1, 3, 2], [2, 1, 4]])
def test_a_query_sees_the_members_of_a_merged_token_that_it_sees(sizes):
    generator = torch.Generator().manual_seed(0)
    prefix, queries, members = 4, 2, torch.arange(3).repeat_interleave(torch.tensor(sizes))
    q, k, v = torch.randn(3, 1, 2, prefix + 3, 4, generator=generator)
    visible = torch.rand(1, queries, len(members), generator=generator) < 0.6
    # All patches, with equal members, and a dense mask.
    whole = torch.cat([torch.arange(prefix), prefix + members])
    allowed = torch.ones(1, 1, prefix, len(whole), dtype=torch.bool)
    allowed[0, 0, prefix - queries :, prefix:] = visible
    expected = F.scaled_dot_product_attention(q[:, :, :prefix], k[:, :, whole], v[:, :, whole], allowed)
    shares = torch.stack([visible[..., members == i].float().mean(-1) for i in range(3)], -1)
    bias = F.pad(torch.tensor(sizes).float().log(), (prefix, 0)).view(1, 1, 1, -1)
    out = QueriesSee(Plain(), shares, prefix, proportional=True).attend(q, k, v, bias)
    torch.testing.assert_close(out[:, :prefix], expected.transpose(1, 2).flatten(2))


def sample(labels, masks, stuff=True):
    """A data sample of 96x96 pixels with these objects, and one stuff class everywhere."""
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0]]).expand(len(labels), -1)
    found = DetDataSample(
        metainfo=dict(
            img_shape=(80, SIDE), ori_shape=(120, 144), batch_input_shape=(SIDE, SIDE), pad_shape=(SIDE, SIDE)
        )
    )
    found.gt_instances = InstanceData(
        labels=torch.tensor(labels, dtype=torch.long),
        bboxes=boxes,
        masks=BitmapMasks(np.array(masks, np.uint8).reshape(-1, SIDE, SIDE), SIDE, SIDE),
    )
    if stuff:
        found.gt_sem_seg = PixelData(sem_seg=torch.full((1, SIDE, SIDE), 4))
    return found


def disc(row, column, radius):
    rows, columns = np.mgrid[:SIDE, :SIDE]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


@pytest.mark.parametrize('prob', [0.0, 1.0])
def test_losses_of_rare_images_are_finite(prob):
    # Nothing in an image; one pixel; a crowd, which mmdet keeps apart.
    model = eomt(token_reduction=dict(type='GridPool'))
    crowded = sample([1], [disc(40, 40, 20)])
    crowded.ignored_instances = crowded.gt_instances
    crowded.gt_instances = crowded.gt_instances[:0]
    batch = [sample([], [], stuff=False), sample([2, 0], [disc(3, 3, 0), disc(40, 40, 30)]), crowded]
    model.train()
    model.panoptic_head.mask_probs.fill_(prob)
    for chosen in (batch, batch[:1]):
        losses = model.loss(images(len(chosen)), chosen)
        assert len(losses) == 3 * (JOINED + 1)
        sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_masks_are_enlarged_where_they_are_used_as_if_all_were():
    model = eomt(test_cfg=dict(instance_on=True, object_mask_thr=0.3, iou_thr=0.2, max_per_image=9))
    stock = MaskFormerFusionHead(3, 2, test_cfg=dict(model.panoptic_fusion_head.test_cfg))
    data = [sample([], []), sample([], [])]
    ((classes, masks),) = predictions(model, images())
    classes = 4 * classes  # surer
    whole = F.interpolate(masks, (SIDE, SIDE), mode='bilinear', align_corners=False)
    for rescale in (False, True):
        own = model.panoptic_fusion_head.predict(classes, masks, data, rescale)
        for found, expected in zip(own, stock.predict(classes, whole, data, rescale)):
            assert (found['pan_results'].sem_seg == expected['pan_results'].sem_seg).all()
            assert found['pan_results'].sem_seg.unique().numel() > 1
            order, other = found['ins_results'].scores.argsort(), expected['ins_results'].scores.argsort()
            for key in ('scores', 'labels', 'bboxes', 'masks'):
                assert (found['ins_results'][key][order] == expected['ins_results'][key][other]).all()


def test_fewer_pairs_of_query_and_class_than_instances_are_no_error():
    model = eomt(test_cfg=dict(instance_on=True, panoptic_on=False))
    with torch.no_grad():
        (found,) = model.predict(images(1), [sample([], [])])
    assert len(found.pred_instances) <= QUERIES * 5 and 'pred_panoptic_seg' not in found


def test_images_are_padded_with_black():
    mean, std = (120.0, 110.0, 100.0), (50.0, 60.0, 70.0)
    model = eomt(mean=mean, std=std, data_preprocessor=dict(type='mmdet.DetDataPreprocessor', pad_size_divisor=SIDE))
    image = torch.randint(0, 255, (3, 80, SIDE), dtype=torch.uint8)
    padded = model.data_preprocessor(dict(inputs=[image], data_samples=[sample([], [])]))['inputs']
    black = F.pad(image.float(), (0, 0, 0, 16))
    normalised = (black - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    plain = copy.deepcopy(model)
    plain.mean.fill_(0.0)
    plain.std.fill_(1.0)
    for a, b in zip(predictions(model, padded)[0], predictions(plain, normalised.unsqueeze(0))[0]):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
