"""Tokens that are given back after the head: norm and head run on reduced ones, logits go to the patches."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.structures import PixelData
from mmseg.models.backbones import VisionTransformer as StockViT
from mmseg.models.decode_heads import FCNHead, SegmenterMaskTransformerHead
from mmseg.models.segmentors import EncoderDecoder as Stock
from mmseg.structures import SegDataSample
from torch import nn
from torch.nn import functional as F

from mmtr import UserError, apply_token_reduction
from mmtr.analysis.flops import count_flops
from mmtr.models.backbones import DINOv2, VisionTransformer
from mmtr.models.reduction_losses import ReductionLosses
from mmtr.models.segmentors import DistillationEncoderDecoder, EncoderDecoder
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.visualization.token_map import record_token_maps
from tests.test_reducers.test_expediting import cluster_one, reconstruct_one

VIT = dict(
    img_size=(48, 64),
    patch_size=8,
    embed_dims=32,
    num_layers=3,
    num_heads=4,
    mlp_ratio=2,
    final_norm=True,
    drop_path_rate=0.0,
)
KNOWN = ('img_size', 'patch_size', 'embed_dims', 'num_layers', 'num_heads', 'final_norm')  # to every backbone
CLASSES = 5
LATE = dict(
    type='Expediting',
    layer=1,
    grid=(3, 5),
    k=4,
    temperature=0.2,
    recon_temperature=0.1,
    restore='copy',
    restore_at='after_head',
)
LOSS = dict(type='CrossEntropyLoss')
HEADS = dict(
    mask=dict(
        type='mmtr.SegmenterMaskTransformerHead',
        in_channels=32,
        channels=32,
        num_classes=CLASSES,
        num_layers=2,
        num_heads=4,
        embed_dims=32,
        drop_path_rate=0.0,
        dropout_ratio=0.0,
        loss_decode=LOSS,
    ),
    linear=dict(
        type='FCNHead',
        in_channels=32,
        channels=32,
        num_classes=CLASSES,
        num_convs=0,
        concat_input=False,
        dropout_ratio=0.0,
        loss_decode=LOSS,
    ),
)
either_head = pytest.mark.parametrize('head', HEADS)


def segmentor(reduction, head='mask', kind=EncoderDecoder, backbone=None, test_cfg=None, **kwargs):
    """A segmentor in eval mode whose every weight matters."""
    torch.manual_seed(0)
    head = HEADS[head] if isinstance(head, str) else head
    backbone = {'type': 'mmtr.VisionTransformer', **VIT, **(backbone or {}), 'token_reduction': reduction}
    test_cfg = ConfigDict(test_cfg or dict(mode='whole'))
    model = kind(backbone=backbone, decode_head=dict(head), test_cfg=test_cfg, **kwargs)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def images(batch=2, height=48, width=64):
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


def samples(batch=2, shape=(48, 64)):
    meta = dict(img_shape=shape, pad_shape=shape, ori_shape=shape)
    labels = torch.randint(CLASSES, (batch, 1, *shape), generator=torch.Generator().manual_seed(2))
    return [SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=each)) for each in labels]


def stock_parts(model):
    """mmseg's backbone and head with the weights of ``model``."""
    backbone = StockViT(**VIT)
    backbone.load_state_dict(model.backbone.state_dict())
    cfg = next(dict(cfg) for cfg in HEADS.values() if cfg['type'].endswith(type(model.decode_head).__name__))
    cfg.pop('type')
    head = {False: FCNHead, True: SegmenterMaskTransformerHead}['num_layers' in cfg](**cfg)
    head.load_state_dict(model.decode_head.state_dict())
    backbone.eval()  # mmseg's returns None here
    return backbone, head.eval()


def slowly(model, image, setting=LATE, grid=(6, 8)):
    """Logits (1, K, *grid) of one image: stock layers, clusters and weights token by token, the stock head on a map of
    clusters."""
    backbone, head = stock_parts(model)
    x, _ = backbone.patch_embed(image)
    x = backbone._pos_embeding(torch.cat([backbone.cls_token, x], 1), grid, backbone.pos_embed)
    for i, layer in enumerate(backbone.layers):
        if i == setting['layer']:
            tokens = x[0, 1:]
            centroids, _ = cluster_one(tokens, grid, setting['grid'], 5, 5, setting['temperature'])
            x = torch.cat([x[:, :1], centroids[None]], 1)
        x = layer(x)
    x = backbone.norm1(x)[:, 1:]
    said = head.forward([x.transpose(1, 2).unflatten(2, setting['grid'])])[0].flatten(1).T
    logits = reconstruct_one(tokens, centroids, said, setting['k'], setting['recon_temperature'], 'l2')
    return logits.T.unflatten(1, grid)[None]


@either_head
def test_norm_and_head_run_on_the_clusters_and_logits_are_given_back(head):
    model = segmentor(LATE, head)
    with torch.no_grad():
        expected = torch.cat([slowly(model, image[None]) for image in images()])
        torch.testing.assert_close(model(images()), expected, atol=1e-4, rtol=1e-4)
        maps = F.interpolate(expected, (48, 64), mode='bilinear', align_corners=False)
        for sample, logits in zip(model.predict(images(), samples()), maps):
            torch.testing.assert_close(sample.seg_logits.data, logits, atol=1e-4, rtol=1e-4)
        early = segmentor({**LATE, 'restore_at': 'before_norm'}, head)
        assert (early(images()) - expected).abs().max() > 1e-2
    losses = model.train().loss(images(), samples())
    labels = torch.cat([sample.gt_sem_seg.data for sample in samples()])
    torch.testing.assert_close(losses['decode.loss_ce'], F.cross_entropy(maps, labels), atol=1e-4, rtol=1e-4)
    losses['decode.loss_ce'].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize(
    'test_cfg', [dict(mode='whole'), dict(mode='slide', crop_size=(48, 64), stride=(24, 40))], ids=str
)
def test_labels_and_logits_are_those_of_the_stock_way_of_predicting(test_cfg):
    model = segmentor(LATE, test_cfg=test_cfg)
    inputs, given = images(height=72, width=104), samples(shape=(72, 104))
    with torch.no_grad():
        ours, stock = (
            predict(inputs, copy.deepcopy(given))
            for predict in (model.predict, lambda *args: Stock.predict(model, *args))
        )
    for one, other in zip(ours, stock):
        assert torch.equal(one.pred_sem_seg.data, other.pred_sem_seg.data)
        assert torch.equal(one.seg_logits.data, other.seg_logits.data)


@either_head
@pytest.mark.parametrize('kind', ['mmtr.VisionTransformer', 'mmtr.EVA02', 'mmtr.DINOv2'])
def test_with_nothing_to_reduce_it_is_the_plain_model(head, kind):
    # Of several outputs the head takes its own.
    backbone = dict(type=kind, out_indices=(0, 2), **{key: VIT[key] for key in KNOWN})
    late, plain = (
        EncoderDecoder(
            backbone=dict(backbone, token_reduction=reduction),
            decode_head=dict(HEADS[head], in_index=-1),
            test_cfg=ConfigDict(mode='whole'),
        ).eval()
        for reduction in ({**LATE, 'grid': 1.0}, None)
    )
    for parameter in plain.parameters():
        nn.init.normal_(parameter, std=0.2)
    late.load_state_dict(plain.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(late(images()), plain(images()), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    'settings',
    [
        dict(local_layer=0, global_layer=1, restore='copy', restore_at='after_head'),
        dict(local_layer=1, global_layer=2, variant='released'),
    ],
    ids=str,
)
def test_padding_is_hidden_from_the_head(settings):
    # Images merge into different numbers of tokens, so that the shorter is padded.
    model = segmentor(dict(type='ALGM', threshold=0.3, **settings))
    inputs = images(3)
    inputs[1] = inputs[1].mean((1, 2), keepdim=True)
    inputs[2, :, :, :40] = 0.3
    with torch.no_grad():
        counts = [model.backbone(each[None])._tokens[0].patches.shape[1] for each in inputs]
        together, alone = model(inputs), torch.cat([model(each[None]) for each in inputs])
        torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
        with pytest.raises(UserError, match='The batch has no image'):
            model(inputs[:0])
        # Alone, without padding: the stock head on the tokens, copied to the patches that they stand for.
        tokens = model.backbone(inputs[:1])._tokens[0]
        said = stock_parts(model)[1].forward([tokens.patches.transpose(1, 2).unsqueeze(2)])[0, :, 0]
        torch.testing.assert_close(alone[0].flatten(1), said[:, tokens.undo.slots[0]], atol=1e-4, rtol=1e-4)
    assert len(set(counts)) == 3


def test_the_head_computes_less_and_pictures_are_as_before():
    late, early = (segmentor({**LATE, 'restore_at': where}) for where in ('after_head', 'before_norm'))
    with torch.no_grad():
        # 48 patches from 15 clusters of 5 classes, in place of 32 channels; the backbone alone gives back nothing.
        for part, saved in ((lambda model: model, 15 * 48 * (32 - 5)), (lambda model: model.backbone, 15 * 48 * 32)):
            counts = [count_flops(part(model), images(1)) for model in (late, early)]
            assert counts[0].total <= counts[1].total - saved and counts[0].unsupported == {}
        maps = []
        for model in (late, early):
            with record_token_maps(model.backbone) as runs:
                expected = model(images())
            maps.append(runs[-1][1])
            torch.testing.assert_close(model(images()), expected)
    assert maps[0].keys() == maps[1].keys() and (maps[0][2][1].stands_for == maps[1][2][1].stands_for).all()


@pytest.mark.slow
def test_it_compiles_as_one_graph():
    model = segmentor(LATE, 'linear')
    with torch.no_grad():
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True, backend='eager')(images()), model(images()), atol=1e-4, rtol=1e-4
        )


PLAIN = {key: value for key, value in LATE.items() if not key.startswith('restore')}


@pytest.mark.parametrize(
    'change, words',
    [
        (dict(head=dict(HEADS['linear'], num_convs=1)), 'decode_head of type FCNHead as it is set needs the full grid'),
        (dict(head=dict(HEADS['linear'], num_convs=1, kernel_size=1)), None),
        (
            dict(head=dict(type='mmtr.SimpleDecoder', in_channels=32, num_classes=5)),
            'decode_head of type SimpleDecoder',
        ),
        (
            dict(head=dict(HEADS['mask'], token_reduction=dict(type='ToMe'))),
            'of type SegmenterMaskTransformerHead .* use SegmenterMaskTransformerHead without token_reduction',
        ),
        (
            dict(head=dict(HEADS['mask'], token_reduction={**LATE, 'layer': 0})),
            "decode_head.token_reduction.restore_at='after_head' is for a backbone",
        ),
        (
            dict(auxiliary_head=HEADS['linear']),
            'model.auxiliary_head needs the full grid of patches.*auxiliary_head=None',
        ),
        (dict(neck=dict(type='FPN', in_channels=[32], out_channels=32, num_outs=1)), 'model.neck needs the full grid'),
        (dict(backbone=dict(output_cls_token=True)), 'output_cls_token=True'),
        (dict(reduction={**PLAIN, 'restore_at': 'after_head'}), "restore='residual': set restore='copy'"),
        (dict(reduction={**LATE, 'restore_at': 'later'}), "restore_at='later' must be one of before_norm"),
        (dict(kind=DistillationEncoderDecoder, distillation=dict(channels=8)), 'no features of patches for'),
        (
            dict(
                kind=DistillationEncoderDecoder,
                reduction=None,
                distillation=dict(channels=8, teacher=dict(type='mmtr.VisionTransformer', **VIT, token_reduction=LATE)),
            ),
            'distillation.teacher.token_reduction.restore_at',
        ),
    ],
    ids=str,
)
def test_what_cannot_give_logits_back_is_refused_when_built(change, words):
    if words is None:
        assert segmentor(LATE, **change)(images()).shape == (2, CLASSES, 6, 8)
        return
    with pytest.raises(UserError, match=words):
        segmentor(**{'reduction': LATE, **change})


def test_a_swin_and_a_detector_are_refused():
    with pytest.raises(UserError, match='cannot work in a Swin, whose next stage needs all tokens'):
        build_token_reducer(LATE, BackboneInfo(6, 32, 0, (12, 12), stage=3))

    class Holder(nn.Module):
        def __init__(self, backbone):
            super().__init__()
            self.backbone = backbone

    class Detector(ReductionLosses, Holder):
        def _num_classes(self):
            return 5

    with pytest.raises(UserError, match='and a Detector needs the full grid of patches'):
        Detector(VisionTransformer(**VIT, token_reduction=LATE))


def test_a_stock_segmentor_says_what_it_lacks():
    # mmseg's asks nothing when it is built.
    model = segmentor(LATE, kind=Stock)
    with pytest.raises(UserError, match="only a segmentor of type='mmtr.EncoderDecoder' gives its logits back"):
        model(images())
    with pytest.raises(UserError, match="only a segmentor of type='mmtr.EncoderDecoder'"):
        model.loss(images(), samples())


def test_applied_to_a_model_that_exists():
    model = apply_token_reduction(segmentor(None), LATE)
    with torch.no_grad():
        assert torch.equal(model(images()), segmentor(LATE)(images()))
    plain = segmentor(None, dict(HEADS['linear'], num_convs=1))
    stock = segmentor(None, kind=Stock)
    for other, words in (
        (plain, 'FCNHead as it is set'),
        (stock, 'this is a EncoderDecoder of mmseg'),
        (DINOv2(img_size=48, patch_size=8, embed_dims=32, num_layers=3, num_heads=4), 'a DINOv2 of'),
    ):
        reducer = getattr(other, 'backbone', other).token_reducer
        with pytest.raises(UserError, match=words):
            apply_token_reduction(other, LATE)
        assert getattr(other, 'backbone', other).token_reducer is reducer
