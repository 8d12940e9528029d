"""Cuts of the vision transformers of torchvision and timm."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from raystudy.finetune.families.cut import Cut, numbered, prepend_to_first


def cut_vit(model: Any) -> Cut:
    """Cut torchvision's ViT: patch embedding (class token and positions too), each encoder block, final norm."""
    units = {
        "patch_embedding": PatchEmbedding(model),
        **numbered("block", model.encoder.layers),
        "norm": ClassTokenNorm(model.encoder.ln),
    }
    return Cut(units, model.hidden_dim, model.patch_size, model.image_size, model.patch_size)


def cut_swin(model: Any) -> Cut:
    """Cut torchvision's Swin v1 or v2: patch embedding, each block (with the merging before it), final norm."""
    embedding, first, *rest = model.features
    units = {"patch_embedding": embedding, **numbered("stage1", first)}
    for index, (merging, stage) in enumerate(zip(rest[::2], rest[1::2], strict=True), start=2):
        units |= prepend_to_first(numbered(f"stage{index}", stage), merging)
    units["norm"] = nn.Sequential(model.norm, model.permute, model.avgpool, model.flatten)
    return Cut(units, model.head.in_features, min_size=4)


def cut_timm_vit(model: Any) -> Cut:
    """Cut timm's ViT or DeiT: patch embedding (tokens and positions too), each block, final norm and pooling."""
    units = {
        "patch_embedding": TimmPatchEmbedding(model),
        **numbered("block", model.blocks),
        "norm": TimmTokenPool(model),
    }
    patch_size, _ = model.patch_embed.patch_size
    image_size = None if model.dynamic_img_size else model.patch_embed.img_size[0]
    return Cut(units, model.head_hidden_size, patch_size, image_size, patch_size)


class PatchEmbedding(nn.Module):
    """Everything of torchvision's ViT before its first encoder block."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.conv_proj = model.conv_proj
        self.class_token = model.class_token
        self.pos_embedding = model.encoder.pos_embedding
        self.dropout = model.encoder.dropout

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, H, W) to (batch, 1 + patches, hidden)."""
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(x.shape[0], -1, -1), patches], dim=1)
        return self.dropout(tokens + self.pos_embedding)


class ClassTokenNorm(nn.Module):
    """Normalises the class token. Its norm does not depend on the other tokens, which are dropped before."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, hidden) to (batch, hidden)."""
        return self.norm(x[:, 0])


class TimmPatchEmbedding(nn.Module):
    """Everything of timm's ViT before its first block, computed by timm's own code with all its variants."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = _shallow_part(model, ("patch_embed", "pos_drop", "patch_drop", "norm_pre"))

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, 3, H, W) to (batch, tokens, hidden)."""
        model: Any = self.model
        return model.norm_pre(model.patch_drop(model._pos_embed(model.patch_embed(x))))


class TimmTokenPool(nn.Module):
    """Everything of timm's ViT after its last block, without dropout and classifier."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = _shallow_part(model, ("norm", "fc_norm"))
        # The tokens' parameters belong to the patch embedding.
        self.model._parameters = {}

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, tokens, hidden) to (batch, hidden)."""
        model: Any = self.model
        return model.fc_norm(model.pool(model.norm(x)))


def _shallow_part(model: nn.Module, children: tuple[str, ...]) -> nn.Module:
    """Return a view of `model` that shares its parameters and owns only these `children`."""
    part = copy.copy(model)
    part._modules = {name: model._modules[name] for name in children}
    part._parameters = dict(model._parameters)
    return part
