"""Write random models of transformers, their inputs and outputs into a folder; run in a process of its own.

Usage: PYTHONPATH=<folder of transformers> python reference.py FOLDER. transformers brings its own numpy.
"""

import sys
from pathlib import Path

import torch
from transformers import (
    DINOv3ViTConfig,
    DINOv3ViTModel,
    EomtConfig,
    EomtDinov3Config,
    EomtDinov3ForUniversalSegmentation,
    EomtForUniversalSegmentation,
)

QUERIES, JOINED, CLASSES, SIDE = 7, 2, 5, 96


def drawn(model):
    """The model in eval mode, with LayerScale and norms far from their start, so that mistakes show."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            scale, norm = 'lambda1' in name, 'norm' in name and name.endswith('weight')
            # Masks of some tens would round by more than is allowed.
            value.normal_(0.3 if scale else 1.0 if norm else 0.0, 0.05 if 'mask_head' in name else 0.15)
    return model.eval()


def fixed(*shape, **kwargs):
    """Draws that depend on the shape alone, so that ours are the same."""
    shape = shape if isinstance(shape[0], int) else shape[0]
    return torch.empty(shape).uniform_(generator=torch.Generator().manual_seed(sum(shape)))


def dinov3(gated):
    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        hidden_size=128,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=160,
        num_register_tokens=4,
        use_gated_mlp=gated,
        hidden_act='silu' if gated else 'gelu',
    )
    model, x = drawn(DINOv3ViTModel(config)), torch.randn(2, 3, 96, 160)
    kept = torch.stack([torch.randperm(60)[:23] for _ in x])
    found = dict(state=model.state_dict(), x=x, kept=kept)
    with torch.no_grad():
        found['tokens'] = model(x).last_hidden_state
        # Few tokens round more.
        found['pruned'] = torch.stack([_pruned(model.double(), *each) for each in zip(x.double(), kept)])
    return found


def _pruned(model, image, kept):
    """All tokens of an image of which only the patches ``kept`` are in the layers after the first."""
    tokens, turns = model.embeddings(image[None]), model.rope_embeddings(image[None])
    for i, layer in enumerate(model.model.layer):
        if i == 1:
            tokens = torch.cat([tokens[:, :5], tokens[:, 5:][:, kept]], 1)
            turns = tuple(each[kept] for each in turns)
        tokens = layer(tokens, position_embeddings=turns)
    return model.norm(tokens)[0]


def eomt(on_dinov3):
    # No model on a DINOv3 with a gated FFN is released; there transformers would have its activation in the head too.
    torch.manual_seed(0)
    if on_dinov3:
        kind, config, more = EomtDinov3ForUniversalSegmentation, EomtDinov3Config, dict(layer_norm_eps=1e-5)
    else:
        kind, config, more = EomtForUniversalSegmentation, EomtConfig, dict(mlp_ratio=4)
    settings = dict(
        hidden_size=128,
        num_hidden_layers=5,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=16,
        num_register_tokens=4,
        num_blocks=JOINED,
        num_queries=QUERIES,
        num_labels=CLASSES,
        train_num_points=200,
    )
    model, x = drawn(kind(config(**settings, **more))), torch.randn(2, 3, SIDE, SIDE)
    found = dict(x=x, predictions={})
    # 0: no masks; 1: masks without draws.
    for prob in (0.0, 1.0):
        model.attn_mask_probs.fill_(prob)
        with torch.no_grad():
            out = model(x)
        found['predictions'][prob] = (out.class_queries_logits, out.masks_queries_logits)
    labels, masks = [torch.tensor([1, 3]), torch.tensor([0])], [torch.zeros(n, SIDE, SIDE) for n in (2, 1)]
    masks[0][0, :40, :50] = masks[0][1, 60:, 30:] = masks[1][0, 20:70, 20:70] = 1
    draw, torch.rand = torch.rand, fixed
    classes, predicted = found['predictions'][0.0]
    losses = model.get_loss_dict(predicted, classes, masks, labels, None)
    torch.rand = draw
    found |= dict(labels=labels, masks=masks, losses={name: value.item() for name, value in losses.items()})
    return dict(found, state=model.state_dict())


if __name__ == '__main__':
    folder = Path(sys.argv[1])
    for gated in (False, True):
        torch.save(dinov3(gated), folder / f'dinov3-{gated}.pth')
    for on_dinov3 in (False, True):
        torch.save(eomt(on_dinov3), folder / f'eomt_dinov{2 + on_dinov3}.pth')
