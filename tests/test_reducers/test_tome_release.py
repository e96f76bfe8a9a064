"""A ViT with ToMe written out as the released code describes it, over the whole sequence, against ours."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmtr.models.backbones import VisionTransformer

CHANNELS, HEADS, DEPTH, GRID = 32, 4, 4, (4, 6)


def vit(cls, cfg):
    model = VisionTransformer(
        img_size=(64, 96),
        embed_dims=CHANNELS,
        num_layers=DEPTH,
        num_heads=HEADS,
        final_norm=True,
        with_cls_token=cls,
        output_cls_token=cls,
        token_reduction=cfg,
    ).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data.normal_(float(parameter.dim() == 1), 0.2, generator=generator)
    return model


class Release:
    """One image through the ViT; ``x`` is the sequence (T, C), ``size`` how many patches each of its tokens is.

    Args:
        weights: State dict of the model.
        cls: Whether the first token of the sequence is a class token.
    """

    def __init__(self, weights, cls):
        self.weights, self.cls = weights, cls

    def linear(self, x, name):
        return x @ self.weights[f'{name}weight'].T + self.weights[f'{name}bias']

    def norm(self, x, name):
        return F.layer_norm(x, (CHANNELS,), self.weights[f'{name}.weight'], self.weights[f'{name}.bias'])

    def embed(self, image):
        patches = F.conv2d(image, self.weights['patch_embed.projection.weight'], stride=16).flatten(1).T
        x = torch.cat([self.weights['cls_token'][0], patches]) if self.cls else patches
        # The table always has a row for the class token.
        return x + self.weights['pos_embed'][0][-len(x) :]

    def attend(self, x, i, size):
        """The attention branch, and the metric of merging: the mean of the keys over heads."""
        q, k, v = self.linear(x, f'layers.{i}.attn.attn.in_proj_').view(len(x), 3, HEADS, -1).permute(1, 2, 0, 3)
        logits = q @ k.transpose(1, 2) / math.sqrt(CHANNELS // HEADS)
        if size is not None:
            logits = logits + size.log()
        out = (logits.softmax(2) @ v).transpose(0, 1).flatten(1)
        return self.linear(out, f'layers.{i}.attn.attn.out_proj.'), k.mean(0)

    def feed(self, x, i):
        hidden = F.gelu(self.linear(x, f'layers.{i}.ffn.layers.0.0.'))
        return self.linear(hidden, f'layers.{i}.ffn.layers.1.')

    def groups(self, metric, r):
        """Which tokens of the sequence become one, in the order of the next sequence: [unmerged of A, B]."""
        metric = metric / metric.norm(dim=1, keepdim=True)
        a, b = list(range(0, len(metric), 2)), list(range(1, len(metric), 2))
        scores = metric[a] @ metric[b].T
        if self.cls:
            scores[0] = -math.inf  # the class token is the first of A, and stays
        best, partner = scores.max(1)
        order = best.argsort(descending=True).tolist()
        r = min(r, (len(metric) - self.cls) // 2)
        merged, unmerged = order[:r], order[r:]
        if self.cls:
            unmerged = sorted(unmerged)
        joined = [[b[j], *(a[k] for k in merged if partner[k] == j)] for j in range(len(b))]
        return [[a[k]] for k in unmerged] + joined

    def progressive(self, x, counts, proportional):
        """The sequence after all layers, and the places of the first sequence that each token stands for."""
        stands_for = [[n] for n in range(len(x))]
        for i, r in enumerate(counts):
            size = torch.tensor([float(len(places)) for places in stands_for])
            branch, metric = self.attend(self.norm(x, f'layers.{i}.ln1'), i, size if proportional else None)
            x = x + branch
            if r > 0:
                groups = self.groups(metric, r)
                x = torch.stack([(x[g] * size[g].unsqueeze(1)).sum(0) / size[g].sum() for g in groups])
                stands_for = [[place for n in g for place in stands_for[n]] for g in groups]
            x = x + self.feed(self.norm(x, f'layers.{i}.ln2'), i)
        return self.norm(x, 'ln1'), stands_for

    def sublayers(self, x, counts, proportional):
        """The sequence after all layers: every branch runs on merged tokens, and each gets its group's change."""

        def merged(x, r, branch):
            groups = self.groups(x, r) if r else [[n] for n in range(len(x))]
            size = torch.tensor([float(len(g)) for g in groups])
            change = branch(torch.stack([x[g].mean(0) for g in groups]), size if proportional else None)
            return torch.stack([change[[n in g for g in groups].index(True)] for n in range(len(x))])

        for i, r in enumerate(counts):
            x = x + merged(self.norm(x, f'layers.{i}.ln1'), r, lambda y, size, i=i: self.attend(y, i, size)[0])
            x = x + merged(self.norm(x, f'layers.{i}.ln2'), r, lambda y, _, i=i: self.feed(y, i))
        return self.norm(x, 'ln1'), [[n] for n in range(len(x))]


@pytest.mark.parametrize('cls', [True, False], ids=['class token', 'none'])
@pytest.mark.parametrize('proportional', [True, False])
@pytest.mark.parametrize(
    'settings, counts',
    [
        (dict(mode='progressive', r=0), (0, 0, 0, 0)),  # the reference is the plain ViT
        (dict(mode='progressive', r=4), (4, 4, 4, 4)),
        (dict(mode='progressive', r=(4, -0.5)), (6, 4, 3, 2)),
        (dict(mode='progressive', r=100), (100, 100, 100, 100)),  # half of what is there, each time
        (dict(r=0.3), (7, 7, 7, 7)),
        (dict(r=[12, 0, 3, 12]), (12, 0, 3, 12)),
    ],
    ids=str,
)
def test_a_vit_with_tome_gives_what_the_release_does(settings, counts, proportional, cls):
    cfg = dict(type='ToMe', proportional_attention=proportional, **settings)
    model = vit(cls, {**cfg, 'restore': 'copy'} if 'mode' in settings else cfg)
    release = Release(model.state_dict(), cls)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (out,) = model(images)
        features, tokens = out if cls else (out, [None, None])
        for image, feature, token in zip(images, features, tokens):
            run = release.progressive if 'mode' in settings else release.sublayers
            x, stands_for = run(release.embed(image), counts, proportional)
            if cls:
                torch.testing.assert_close(token, x[0], atol=1e-5, rtol=0)
            own = {place: x[n] for n, places in enumerate(stands_for) for place in places}
            expected = torch.stack([own[n + cls] for n in range(GRID[0] * GRID[1])])
            torch.testing.assert_close(feature.flatten(1).T, expected, atol=1e-5, rtol=0)
