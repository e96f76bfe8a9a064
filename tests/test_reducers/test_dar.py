"""DAR against loops over single tokens, its random choice against the law it states, and its budget."""

import math

import pytest
import torch

from mmtr import UserError
from mmtr.analysis.flops import count_flops
from mmtr.models.backbones import VisionTransformer
from mmtr.models.backbones.common.layer import run_layer
from mmtr.ops.selection import on_selected, straight_through
from mmtr.reducers import BackboneInfo, build_token_reducer
from mmtr.reducers.auxiliary import auxiliary_outputs
from mmtr.visualization.token_map import token_maps

from .test_contract import eva02, images, vit

SHAPE = BackboneInfo(4, 32, 1)


def selected(model, x):
    """(B, layers, H, W) booleans: the patches that go through each FFN."""
    maps = token_maps(model, x)
    return torch.stack(
        [
            torch.stack([torch.from_numpy(maps[i][b].group == 2) for i in range(len(model.layers))])
            for b in range(len(x))
        ]
    )


def ffn_of(model, layer):
    return layer.ffn.branch if hasattr(layer.ffn, 'fc1') else lambda x: layer.ffn.layers(x)


@torch.no_grad()
def token_by_token(model, tokens):
    """The layers of ``model`` in evaluation on ``Tokens`` of one image; FFN and selector run on single tokens."""
    height, width = tokens.grid
    for layer, selector in zip(model.layers, model.token_reducer.selectors):
        tokens = tokens.replace(x=tokens.x + layer.attn.at(tokens).branch(layer.norm1(tokens.x)))
        prefix, patches = tokens.prefix[0], tokens.patches[0]
        out = [token + ffn_of(model, layer)(layer.norm2(token)) for token in prefix]
        for row in range(height):
            for column in range(width):
                logit = float(selector.bias)
                for dy in (-1, 0, 1):
                    for dx in (-1, 0, 1):
                        y, x = row + dy, column + dx
                        if 0 <= y < height and 0 <= x < width:
                            logit += float(selector.weight[0, :, dy + 1, dx + 1] @ patches[y * width + x])
                token = patches[row * width + column]
                chosen = 1 / (1 + math.exp(-logit)) > 0.5
                out.append(token + ffn_of(model, layer)(layer.norm2(token)) if chosen else token)
        tokens = tokens.replace(x=torch.stack(out).unsqueeze(0))
    return tokens.x


@pytest.mark.parametrize('build', [vit, eva02])
def test_evaluation_is_token_by_token(build):
    model = build(dict(type='DAR'))
    x = images(1, 48, 112)
    with torch.no_grad():
        tokens = model._embed(x)
        expected = model._final_norm(token_by_token(model, tokens))
        found = model(x)[1]
    assert 0.1 < selected(model, x).float().mean() < 0.9
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), expected[:, 1:], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize('height, width', [(80, 112), (48, 176)])
def test_each_of_eight_images_is_as_it_is_alone(height, width):
    model, x = vit(dict(type='DAR')), images(8, height, width)
    x[3] = 0.5
    chosen = selected(model, x)
    assert len(set(chosen[:, 1].sum((1, 2)).tolist())) > 3  # ragged
    with torch.no_grad():
        for i, out in enumerate(model(x)[1]):
            torch.testing.assert_close(out, model(x[i : i + 1])[1][0], atol=2e-5, rtol=1e-4)
    for i in range(8):
        assert torch.equal(chosen[i], selected(model, x[i : i + 1])[0])


@pytest.mark.parametrize('bias, share', [(-1e9, 0), (1e9, 1)])
@pytest.mark.parametrize('with_cls_token', [True, False])
def test_all_or_no_patches_chosen(bias, share, with_cls_token):
    model = vit(dict(type='DAR'), with_cls_token=with_cls_token)
    for selector in model.token_reducer.selectors:
        torch.nn.init.constant_(selector.bias, bias)
    assert selected(model, images()).float().mean() == share
    seen = []
    model.layers[2].ffn.layers[0].register_forward_hook(lambda module, args, out: seen.append(out.shape[0]))
    with torch.no_grad():
        assert all(out.isfinite().all() for out in model(images()))
    assert seen == [2 * (35 * share + with_cls_token)]


def test_threshold_is_of_the_probability():
    low, high = (vit(dict(type='DAR', threshold=threshold)) for threshold in (0.2, 0.9))
    logits = []
    low.token_reducer.selectors[0].register_forward_hook(lambda module, args, out: logits.append(out))
    chosen = selected(low, images())
    assert torch.equal(chosen[:, 0], logits[0][:, 0].sigmoid() > 0.2)
    high.load_state_dict(low.state_dict())
    assert torch.equal(selected(high, images())[:, 0], logits[0][:, 0].sigmoid() > 0.9)


def test_random_choice_has_the_probability_of_the_logit():
    torch.manual_seed(0)
    for logit in (-2.0, 0.0, 1.5):
        drawn = straight_through(torch.full((100_000,), logit), 5.0)
        assert set(drawn.tolist()) == {0.0, 1.0}
        assert drawn.mean() == pytest.approx(1 / (1 + math.exp(-logit)), abs=0.006)


def test_gradient_of_the_random_choice_is_that_of_the_soft_one():
    logits = torch.tensor([-1.0, 0.2, 3.0], requires_grad=True)
    torch.manual_seed(3)
    hard = straight_through(logits, 5.0)
    (hard * torch.tensor([1.0, 2.0, 3.0])).sum().backward()
    torch.manual_seed(3)
    uniform = torch.rand(3)
    for i, weight in enumerate((1.0, 2.0, 3.0)):
        soft = 1 / (1 + math.exp(-(float(logits.detach()[i]) + math.log(uniform[i] / (1 - uniform[i]))) / 5))
        assert hard.tolist()[i] == (soft > 0.5)
        assert float(logits.grad[i]) == pytest.approx(weight * soft * (1 - soft) / 5, rel=1e-4)


def test_function_sees_the_chosen_tokens_of_all_images_alone():
    x = torch.randn(3, 5, 4)
    chosen = torch.tensor([[1, 0, 0, 1, 0], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], dtype=torch.bool)
    seen = []
    out = on_selected(lambda t: seen.append(t) or t * 2, x, chosen)
    assert torch.equal(seen[0], torch.stack([x[0, 0], x[0, 3], *x[2]]))
    assert torch.equal(out, 2 * x * chosen.unsqueeze(2))


def test_budget_loss_is_of_each_image_over_all_layers():
    model = vit(dict(type='DAR', target=0.4, budget_weight=3.0)).train()
    torch.manual_seed(5)
    masks = []
    after_layer = model.token_reducer.after_layer
    model.token_reducer.after_layer = lambda i, tokens: (
        masks.append(tokens.memo['selected'][:, 1:]) or after_layer(i, tokens)
    )
    with auxiliary_outputs() as outputs:
        model(images(3))
    losses = model.token_reducer.losses(outputs[model.token_reducer], [])
    expected = 0.0
    for image in range(3):
        counts = [float(mask[image, j]) for mask in masks for j in range(35)]
        expected += 3 * (sum(counts) / len(counts) - 0.4) ** 2 / 3
    assert len(masks) == 4 and float(losses['loss_budget']) == pytest.approx(expected, rel=1e-5)
    assert float(losses['selected']) == pytest.approx(float(torch.stack(masks).mean()), rel=1e-5)


def test_in_training_the_ffn_sees_all_and_what_is_not_chosen_gets_nothing_of_it():
    model, x = vit(dict(type='DAR')).train(), images()
    torch.nn.init.constant_(model.token_reducer.selectors[0].bias, -1e9)
    layer, tokens, seen = model.layers[0], model._embed(x), []
    layer.ffn.layers.register_forward_hook(lambda module, args, out: seen.append(out))
    with auxiliary_outputs():
        out = run_layer(layer, tokens, model.token_reducer, 0)
    attended = tokens.x + layer.attn.branch(layer.norm1(tokens.x))
    torch.testing.assert_close(out.patches, attended[:, 1:])
    torch.testing.assert_close(out.prefix, (attended + seen[0])[:, :1])
    assert seen[0].shape == (2, 36, 32)


def test_calibrated_selectors_choose_the_target_and_halve_the_ffn():
    torch.manual_seed(0)
    models = [
        VisionTransformer(
            img_size=96, patch_size=8, embed_dims=32, num_layers=3, num_heads=4, token_reduction=cfg
        ).eval()
        for cfg in (None, dict(type='DAR'), dict(type='DAR', target=0.25))
    ]
    plain, half, quarter = models
    x = torch.randn(1, 3, 96, 96)
    quarter.load_state_dict(half.state_dict(), assign=True)
    for model in models:
        model.token_reducer.calibrate(lambda: model(x))  # noqa: B023
    for model, share in ((half, 0.5), (quarter, 0.25)):
        assert selected(model, x).float().mean((2, 3)).tolist()[0] == pytest.approx([share] * 3, abs=0.01)
    first, second = (model.token_reducer.selectors[0] for model in (half, quarter))
    assert first.weight.data_ptr() == second.weight.data_ptr() and not torch.equal(first.bias, second.bias)
    whole, part = (count_flops(model, x) for model in (plain, half))
    for i in range(3):
        name = f'layers.{i}.ffn.layers'
        assert part.by_module[name] == whole.by_module[name] * 73 / 145  # the class token and half of 144 patches
        assert part.by_module[f'layers.{i}.attn'] == whole.by_module[f'layers.{i}.attn']
    assert not part.unsupported


@pytest.mark.parametrize(
    'settings, words',
    [
        (dict(target=0), 'target=0 must be a share above 0'),
        (dict(target=1.2), 'target=1.2'),
        (dict(temperature=0.0), 'temperature=0.0 must be a number from 0.001'),
        (dict(budget_weight=-1), 'budget_weight=-1'),
        (dict(threshold=1), 'threshold=1 must be a probability'),
        (dict(ratio=0.5), "has no setting 'ratio'"),
    ],
)
def test_what_cannot_work_is_said_when_it_is_built(settings, words):
    with pytest.raises(UserError, match=words):
        build_token_reducer(dict(type='DAR', **settings), SHAPE)


def test_training_asks_for_a_model_with_losses():
    with pytest.raises(UserError, match="train it with type='mmtr.EncoderDecoder'.*stock type.$"):
        vit(dict(type='DAR')).train()(images())
