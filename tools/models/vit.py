"""The small vision transformer for 224×224 images, with the layout and the state-dict names of timm.

Dosovitskiy et al., "An Image is Worth 16x16 Words" (2020); the small size is that of Touvron et al.,
"Training data-efficient image transformers" (2020).
"""

from __future__ import annotations

from functools import partial

import attrs
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .init import seed_parameters

__all__ = ["ViTConfig", "VisionTransformer", "vit_small"]

_norm = partial(nn.LayerNorm, eps=1e-6)


@attrs.frozen
class ViTConfig:
    """The sizes of a vision transformer; the defaults are ViT-S/16's.

    Args:
        image: height and width of the images, a multiple of ``patch``.
        patch: height and width of a patch.
        dim: width of the tokens.
        depth: number of blocks.
        heads: number of attention heads, which divides ``dim``.
        num_classes: number of logits.
    """

    image: int = 224
    patch: int = 16
    dim: int = 384
    depth: int = 12
    heads: int = 6
    num_classes: int = 1000


class PatchEmbed(nn.Module):
    """One token a patch: ``[N, 3, H, W]`` → ``[N, H/patch · W/patch, dim]``."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, kernel_size=patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        """The tokens of the patches of ``x``, row by row."""
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Multi-head self-attention on ``[N, tokens, dim]``; query, key and value from one linear."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """What each token of ``x`` gathers from all tokens."""
        n, tokens, dim = x.shape
        qkv = self.qkv(x).reshape(n, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(n, tokens, dim))


class Mlp(nn.Module):
    """Two linears, gelu between them, on the last dimension."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """The output for ``x``."""
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm and beside a shortcut, on ``[N, tokens, dim]``."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1 = _norm(dim)
        self.attn = Attention(dim, heads)
        self.norm2 = _norm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output for ``x``."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """A vision transformer for images ``[N, 3, image, image]``, to logits ``[N, num_classes]``."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        tokens = 1 + (config.image // config.patch) ** 2
        self.patch_embed = PatchEmbed(config.patch, config.dim)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, config.dim))
        self.blocks = nn.Sequential(*(Block(config.dim, config.heads) for _ in range(config.depth)))
        self.norm = _norm(config.dim)
        self.head = nn.Linear(config.dim, config.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """The logits of ``x``."""
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit_small(*, num_classes: int = 1000, seed: int = 0) -> VisionTransformer:
    """ViT-S/16 in eval mode, its parameters drawn from ``seed``."""
    return seed_parameters(VisionTransformer(ViTConfig(num_classes=num_classes)), seed)
