"""Tokens that are given back after the head: norm and head run on reduced ones, logits go to the patches."""

import copy

import pytest
import torch
from mmengine.config import ConfigDict
from mmseg.models.backbones import VisionTransformer as StockViT
from mmseg.models.decode_heads import FCNHead, SegmenterMaskTransformerHead
from mmseg.models.segmentors import EncoderDecoder as Stock
from torch import nn
from torch.nn import functional as F

from mmtr import UserError
from mmtr.analysis.flops import count_flops
from mmtr.models.segmentors import EncoderDecoder
from mmtr.visualization.token_map import record_token_maps
from tests.test_reducers.test_expediting import cluster_one, reconstruct_one

from .late_restoring import HEADS, LATE, VIT, images, samples, segmentor

KNOWN = ('img_size', 'patch_size', 'embed_dims', 'num_layers', 'num_heads', 'final_norm')  # to every backbone
either_head = pytest.mark.parametrize('head', HEADS)


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


@pytest.mark.slow
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
