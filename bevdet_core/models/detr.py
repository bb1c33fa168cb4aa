"""DETR (Carion et al., 2020): one feature map, a plain transformer, one query for each object."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..structures import ImageBatch, Predictions
from .heads import scale_to_pixels
from .transformer import FeedForward, MultiHeadAttention, plain_images, resize_mask, xavier_init


class DetrEncoderLayer(nn.Module):
    """Self-attention and feed-forward layer.

    Args:
        dim: width of the tokens.
        num_heads: of the attention.
        ffn_dim: hidden width of the feed-forward layer.
        dropout: rate, while training.
        pre_norm: normalise what goes into each part, instead of the sum after it.
    """

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self,
        tokens: Tensor,  # [B, S, D]
        positions: Tensor,  # [B, S, D]
        valid: Tensor,  # [B, 1, 1, S] bool, False under padding
    ) -> Tensor:
        """Tokens -> tokens."""
        if self.pre_norm:
            inner = self.norm1(tokens)
            where = inner + positions
            tokens = tokens + self.dropout(self.self_attention(where, where, inner, valid))
            return tokens + self.dropout(self.ffn(self.norm2(tokens)))
        where = tokens + positions
        tokens = self.norm1(tokens + self.dropout(self.self_attention(where, where, tokens, valid)))
        return self.norm2(tokens + self.dropout(self.ffn(tokens)))


class DetrDecoderLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward layer; arguments as for `DetrEncoderLayer`."""

    def __init__(self, dim: int, num_heads: int, ffn_dim: int, dropout: float = 0.0, pre_norm: bool = False) -> None:
        super().__init__()
        self.self_attention = MultiHeadAttention(dim, num_heads, dropout)
        self.norm1 = nn.LayerNorm(dim)
        self.cross_attention = MultiHeadAttention(dim, num_heads, dropout)
        self.norm2 = nn.LayerNorm(dim)
        self.ffn = FeedForward(dim, ffn_dim, dropout)
        self.norm3 = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.pre_norm = pre_norm

    def forward(
        self,
        query: Tensor,  # [B, Q, D]
        query_pos: Tensor,  # [B, Q, D]
        memory: Tensor,  # [B, S, D]
        located_memory: Tensor,  # [B, S, D], the memory plus its positions
        valid: Tensor,  # [B, 1, 1, S] bool, False under padding
    ) -> Tensor:
        """Queries -> queries."""
        if self.pre_norm:
            inner = self.norm1(query)
            where = inner + query_pos
            query = query + self.dropout(self.self_attention(where, where, inner))
            where = self.norm2(query) + query_pos
            query = query + self.dropout(self.cross_attention(where, located_memory, memory, valid))
            return query + self.dropout(self.ffn(self.norm3(query)))
        where = query + query_pos
        query = self.norm1(query + self.dropout(self.self_attention(where, where, query)))
        attended = self.cross_attention(query + query_pos, located_memory, memory, valid)
        query = self.norm2(query + self.dropout(attended))
        return self.norm3(query + self.dropout(self.ffn(query)))


class DetrEncoder(nn.Module):
    """Lets the cells of the feature map exchange what they see.

    Args:
        dim: width of the tokens.
        num_layers: one after the other, each a `DetrEncoderLayer` with the other arguments; with `pre_norm` a
            LayerNorm follows the last.
    """

    def __init__(
        self, dim: int, num_layers: int, num_heads: int, ffn_dim: int, dropout: float = 0.0, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DetrEncoderLayer(dim, num_heads, ffn_dim, dropout, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim) if pre_norm else nn.Identity()
        xavier_init(self)

    def forward(self, tokens: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """The memory [B, S, D]; see `DetrEncoderLayer`."""
        for layer in self.layers:
            tokens = layer(tokens, positions, valid)
        return self.norm(tokens)


class DetrDecoder(nn.Module):
    """Turns queries into objects, layer by layer.

    Args:
        dim: width of the queries.
        num_layers: one after the other, each a `DetrDecoderLayer` with the other arguments.
    """

    def __init__(
        self, dim: int, num_layers: int, num_heads: int, ffn_dim: int, dropout: float = 0.0, pre_norm: bool = False
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            DetrDecoderLayer(dim, num_heads, ffn_dim, dropout, pre_norm) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(dim)
        xavier_init(self)

    def forward(self, query_pos: Tensor, memory: Tensor, positions: Tensor, valid: Tensor) -> Tensor:
        """[L, B, Q, D]: the queries after every layer, normalised; see `DetrDecoderLayer`."""
        located_memory = memory + positions
        query = torch.zeros_like(query_pos)
        hidden = []
        for layer in self.layers:
            query = layer(query, query_pos, memory, located_memory, valid)
            hidden.append(self.norm(query))
        return torch.stack(hidden)


class Detr(nn.Module):
    """The detector.

    Args:
        backbone: images [B, 3, H, W] -> feature maps, of which the coarsest is used.
        neck: that feature map -> [B, D, h, w].
        position: padding mask [B, h, w] -> where cells are [B, h, w, D].
        encoder: see `DetrEncoder`.
        decoder: see `DetrDecoder`.
        class_head: from queries [..., D] to logits [..., C + 1], "no object" last.
        box_head: from queries [..., D] to boxes [..., 4] in logit space.
        num_queries: objects that an image can have.
        embed_dim: D.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        position: nn.Module,
        encoder: DetrEncoder,
        decoder: DetrDecoder,
        class_head: nn.Module,
        box_head: nn.Module,
        num_queries: int,
        embed_dim: int,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.position = backbone, neck, position
        self.encoder, self.decoder = encoder, decoder
        self.query_embed = nn.Embedding(num_queries, embed_dim)
        self.class_head, self.box_head = class_head, box_head

    def forward(self, batch: ImageBatch) -> Predictions:
        """Detect objects in images (N = 1).

        Raises:
            ValueError: the batch holds rig frames.
        """
        images, mask = plain_images(batch)
        features = self.neck(self.backbone(images)[-1])
        mask = resize_mask(mask, features.shape[-2:])
        tokens = features.flatten(2).transpose(1, 2)
        positions = self.position(mask).flatten(1, 2)
        valid = ~mask.flatten(1)[:, None, None]

        memory = self.encoder(tokens, positions, valid)
        # Not len(), which would fix an exported graph's batch size.
        query_pos = self.query_embed.weight.expand(images.shape[0], -1, -1)
        hidden = self.decoder(query_pos, memory, positions, valid)
        with torch.autocast(hidden.device.type, enabled=False):
            boxes = self.box_head(hidden.to(query_pos.dtype)).sigmoid()
        return Predictions(self.class_head(hidden), boxes, hidden=hidden)

    def scores(self, logits: Tensor) -> Tensor:
        """The probability of every class [..., C], from logits [..., C + 1]."""
        return F.softmax(logits.float(), -1)[..., :-1]

    @torch.no_grad()
    def decode(self, predictions: Predictions, batch: ImageBatch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """One detection of each query, in their order: its best class other than "no object".

        Returns:
            (scores [Q], labels [Q], boxes [Q, 4]) per image; boxes (x0, y0, x1, y1) in pixels of the original image.
        """
        scores, labels = self.scores(predictions.logits[-1]).max(-1)
        boxes = scale_to_pixels(predictions.boxes[-1].float(), batch)
        return list(zip(scores, labels, boxes, strict=True))
