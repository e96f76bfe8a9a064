"""EoMT in the layouts of its release and of Hugging Face: random weights, and a forward pass without masks."""

import re

import torch
from dinov2_layout import DINOv2
from official_layouts import DIM
from torch import nn

QUERIES, CLASSES, QUERY_LAYERS, GRID = 7, 5, 1, (3, 3)
#: Names of the release -> names of Hugging Face, one after the other.
HUGGING_FACE = {
    r'^patch_embed\.proj': 'embeddings.patch_embeddings.projection',
    r'^norm\.': 'layernorm.',
    r'^blocks\.': 'layers.',
    r'\.attn\.proj': '.attention.out_proj',
    r'\.attn\.': '.attention.',
    r'\.ls(\d)\.gamma': r'.layer_scale\1.lambda1',
    r'^class_head': 'class_predictor',
    r'^mask_head\.0': 'mask_head.fc1',
    r'^mask_head\.2': 'mask_head.fc2',
    r'^mask_head\.4': 'mask_head.fc3',
    r'^upscale\.(\d)\.norm': r'upscale_block.block.\1.layernorm2d',
    r'^upscale\.': 'upscale_block.block.',
}


class Upscale(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.ConvTranspose2d(DIM, DIM, 2, 2)
        self.conv2 = nn.Conv2d(DIM, DIM, 3, padding=1, groups=DIM, bias=False)
        self.norm = nn.LayerNorm(DIM, eps=1e-6)

    def forward(self, x):
        x = self.conv1(x)
        x = self.conv2(x * 0.5 * (1 + torch.erf(x / 2**0.5)))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class EoMT(nn.Module):
    """The release's model on DINOv2, by its names."""

    def __init__(self, queries=QUERIES, classes=CLASSES):
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.backbone = DINOv2(4, GRID)
        torch.manual_seed(1)
        self.q, self.class_head = nn.Embedding(queries, DIM), nn.Linear(DIM, classes + 1)
        self.mask_head = nn.Sequential(
            nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM)
        )
        self.upscale = nn.Sequential(Upscale(), Upscale())
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, 1.0, 0.1)

    @torch.no_grad()
    def forward(self, image):
        """Class logits and mask logits of the last prediction, of normalised images."""
        vit, count = self.encoder.backbone, len(self.q.weight)
        x = vit.patch_embed.proj(image).flatten(2).transpose(1, 2) + vit.pos_embed[:, 1:]
        x = torch.cat([token.expand(len(x), -1, -1) for token in (vit.cls_token, vit.register_tokens)] + [x], 1)
        for i, block in enumerate(vit.blocks):
            if i == len(vit.blocks) - QUERY_LAYERS:
                x = torch.cat([self.q.weight.expand(len(x), -1, -1), x], 1)
            x = block(x)
        x = vit.norm(x)
        patches = x[:, count + 5 :].transpose(1, 2).unflatten(2, GRID)
        masks = torch.einsum('bqc,bchw->bqhw', self.mask_head(x[:, :count]), self.upscale(patches))
        return self.class_head(x[:, :count]), masks


def release_state(model):
    """The state dict of the release: timm's names, no position of the class token, no mask token."""
    state = {key.replace('register_tokens', 'reg_token'): value for key, value in model.state_dict().items()}
    del state['encoder.backbone.mask_token']
    state['encoder.backbone.pos_embed'] = state['encoder.backbone.pos_embed'][:, 1:]
    state |= {'attn_mask_probs': torch.ones(QUERY_LAYERS), 'encoder.pixel_mean': torch.ones(1, 3, 1, 1)}
    state = {f'network.{key}': value for key, value in state.items()}
    return {**state, 'criterion.empty_weight': torch.ones(len(model.class_head.bias))}


def hugging_face_state(model):
    """The same as Hugging Face stores it."""
    state = {key.removeprefix('encoder.backbone.'): value for key, value in model.state_dict().items()}
    del state['mask_token']
    new = {
        'embeddings.cls_token': state.pop('cls_token'),
        'embeddings.register_tokens': state.pop('register_tokens'),
        'embeddings.position_embeddings.weight': state.pop('pos_embed')[0, 1:],
        'query.weight': state.pop('q.weight'),
        'attn_mask_probs': torch.ones(QUERY_LAYERS),
        'criterion.empty_weight': torch.ones(len(model.class_head.bias)),
    }
    for key, value in state.items():
        for pattern, name in HUGGING_FACE.items():
            key = re.sub(pattern, name, key)
        if '.qkv.' in key:
            new |= {key.replace('qkv', f'{name}_proj'): part for name, part in zip('qkv', value.chunk(3))}
        else:
            new[key] = value
    return new
