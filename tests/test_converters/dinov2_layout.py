"""DINOv2 in the official layout: plain modules with the official names, and its interpolation of positions by hand."""

import math

import torch
from official_layouts import DIM, LAYERS, PATCH, SIZE
from torch import nn

HEADS = 2
GRID = (SIZE[0] // PATCH, SIZE[1] // PATCH)
WIDTH = -(-8 * DIM // 3 // 8) * 8  # of gate and value


def cubic(x, a):
    x = abs(x)
    if x < 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0


def interpolation(old, new, antialias, offset):
    """The matrix (new, old) of bicubic interpolation along one side, entry by entry."""
    step = old / (new + offset)
    wide = max(step, 1.0) if antialias else 1.0
    matrix = torch.zeros(new, old, dtype=torch.float64)
    for row in range(new):
        centre = (row + 0.5) * step - 0.5
        first, last = math.floor(centre - 2 * wide), math.ceil(centre + 2 * wide)
        for column in range(first, last + 1):
            weight = cubic((column - centre) / wide, -0.5 if antialias else -0.75)
            if antialias:  # what lies outside counts for nothing
                if 0 <= column < old:
                    matrix[row, column] += weight
            else:  # the border is repeated
                matrix[row, min(max(column, 0), old - 1)] += weight
    return matrix / matrix.sum(1, keepdim=True)


def interpolated(table, old, new, antialias, offset):
    """A position table (1, 1 + H * W, C) for another grid."""
    if old == new:
        return table
    rows, columns = (interpolation(o, n, antialias, offset) for o, n in zip(old, new))
    patches = torch.einsum('ri,cj,ijd->rcd', rows, columns, table[0, 1:].double().unflatten(0, old))
    return torch.cat((table[:, :1], patches.flatten(0, 1).unsqueeze(0).to(table.dtype)), 1)


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(DIM) + 0.5)

    def forward(self, x):
        return x * self.gamma


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.proj = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)

    def forward(self, x):
        out = []
        for q, k, v in zip(*(t.chunk(HEADS, -1) for t in self.qkv(x).chunk(3, -1))):
            out.append((q @ k.transpose(1, 2) / q.shape[-1] ** 0.5).softmax(-1) @ v)
        return self.proj(torch.cat(out, -1))


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(DIM, 4 * DIM), nn.Linear(4 * DIM, DIM)

    def forward(self, x):
        x = self.fc1(x)
        return self.fc2(x * 0.5 * (1 + torch.erf(x / 2**0.5)))


class Gated(nn.Module):
    def __init__(self):
        super().__init__()
        self.w12, self.w3 = nn.Linear(DIM, 2 * WIDTH), nn.Linear(WIDTH, DIM)

    def forward(self, x):
        gate, value = self.w12(x)[..., :WIDTH], self.w12(x)[..., WIDTH:]
        return self.w3(gate / (1 + torch.exp(-gate)) * value)


class Block(nn.Module):
    def __init__(self, gated=False):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(DIM, eps=1e-6), nn.LayerNorm(DIM, eps=1e-6)
        self.attn, self.mlp = Attention(), Gated() if gated else Mlp()
        self.ls1, self.ls2 = Scale(), Scale()

    def forward(self, x):
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class PatchEmbed(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Conv2d(3, DIM, PATCH, PATCH)


class DINOv2(nn.Module):
    """The official model, DIM wide; random weights that matter."""

    def __init__(self, registers=0, grid=GRID, antialias=None, offset=None, gated=False):
        super().__init__()
        torch.manual_seed(0)
        self.grid = grid
        self.antialias = registers > 0 if antialias is None else antialias
        self.offset = (0.0 if registers else 0.1) if offset is None else offset
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid[0] * grid[1], DIM))
        if registers:
            self.register_tokens = nn.Parameter(torch.randn(1, registers, DIM))
        self.mask_token = nn.Parameter(torch.randn(1, DIM))
        self.patch_embed = PatchEmbed()
        self.blocks = nn.ModuleList(Block(gated) for _ in range(LAYERS))
        self.norm = nn.LayerNorm(DIM, eps=1e-6)
        for module in self.modules():
            if isinstance(module, nn.LayerNorm):
                nn.init.normal_(module.weight, 1.0, 0.1)
                nn.init.normal_(module.bias, 0.0, 0.1)

    @torch.no_grad()
    def forward(self, image):
        """The normalised patch tokens after each layer as maps (B, C, H, W), from images of whole patches."""
        x = self.patch_embed.proj(image)
        grid = tuple(x.shape[2:])
        x = torch.cat((self.cls_token.expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)), 1)
        x = x + interpolated(self.pos_embed, self.grid, grid, self.antialias, self.offset)
        registers = getattr(self, 'register_tokens', x[:1, :0])
        x = torch.cat((x[:, :1], registers.expand(len(x), -1, -1), x[:, 1:]), 1)
        outs = []
        for block in self.blocks:
            x = block(x)
            outs.append(self.norm(x)[:, 1 + registers.shape[1] :].transpose(1, 2).unflatten(2, grid))
        return outs
