"""Deformable DETR (Zhu et al., 2021): single-scale, multi-scale, with iterative box refinement, two-stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..structures import ImageBatch, Predictions
from .deformable_transformer import DeformableDecoder, DeformableEncoder, FeatureTokens
from .denoising import DenoisingGenerator
from .heads import scale_to_pixels, top_predictions
from .proposals import ProposalGenerator
from .transformer import flatten_levels, plain_images, resize_mask


class LearnedQueries(nn.Module):
    """Queries that are the same for every image, with a learned reference point each.

    Args:
        num_queries: objects that an image can have.
        dim: width of the queries.
    """

    def __init__(self, num_queries: int, dim: int) -> None:
        super().__init__()
        self.query_embed = nn.Embedding(num_queries, 2 * dim)  # position, content
        self.reference_points = nn.Linear(dim, 2)
        nn.init.xavier_uniform_(self.reference_points.weight)
        nn.init.zeros_(self.reference_points.bias)

    def forward(self, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Reference points [B, Q, 2], position part [B, Q, D] and content part [B, Q, D]."""
        query_pos, content = self.query_embed.weight.expand(batch_size, -1, -1).chunk(2, -1)
        with torch.autocast(query_pos.device.type, enabled=False):
            return self.reference_points(query_pos).sigmoid(), query_pos, content


class DeformableDetr(nn.Module):
    """The detector.

    Args:
        backbone: images [B, 3, H, W] -> feature maps, fine to coarse.
        neck: feature maps -> L levels [B, D, H_l, W_l].
        position: padding mask [B, H, W] of a level -> where its cells are [B, H, W, D].
        encoder: see `DeformableEncoder`.
        queries: `LearnedQueries`, or the `ProposalGenerator` of a two-stage detector.
        decoder: see `DeformableDecoder`.
        denoising: makes further queries from the targets while training.
        num_levels: L.
        embed_dim: D.
        max_detections: the best (query, class) pairs kept per image.
    """

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        position: nn.Module,
        encoder: DeformableEncoder,
        queries: LearnedQueries | ProposalGenerator,
        decoder: DeformableDecoder,
        denoising: DenoisingGenerator | None,
        num_levels: int,
        embed_dim: int,
        max_detections: int = 100,
    ) -> None:
        super().__init__()
        self.backbone, self.neck, self.position, self.encoder = backbone, neck, position, encoder
        self.queries, self.decoder, self.denoising = queries, decoder, denoising
        self.level_embed = nn.Parameter(torch.randn(num_levels, embed_dim))
        self.max_detections = max_detections

    def forward(self, batch: ImageBatch) -> Predictions:
        """Detect objects in images (N = 1). While training, `batch.targets` feed the denoising queries.

        Raises:
            ValueError: the batch holds rig frames; or fewer cells than queries in a two-stage detector.
        """
        images, mask = plain_images(batch)
        levels = self.neck(self.backbone(images))
        features, positions = self.tokens(levels, mask)
        features.tokens = self.encoder(features, positions)

        proposals = None
        if isinstance(self.queries, ProposalGenerator):
            proposals, reference, query_pos, query = self.queries(features)
        else:
            # Not len(), which would fix an exported graph's batch size.
            reference, query_pos, query = self.queries(images.shape[0])

        if self.denoising is None or not self.training or batch.targets is None:
            decoded = self.decoder(features, query, query_pos, reference)
            logits, boxes, hidden = (torch.stack(x) for x in (decoded.logits, decoded.boxes, decoded.hidden))
            return Predictions(logits, boxes, proposals, hidden)

        noisy = self.denoising(batch.targets)
        Q = query.shape[1]
        decoded = self.decoder(
            features,
            torch.cat([query, noisy.query], 1),
            torch.cat([query_pos, noisy.query_pos], 1),
            torch.cat([reference, noisy.boxes[..., : reference.shape[-1]]], 1),
            noisy.attention_mask(Q),
        )
        logits, boxes, hidden = (torch.stack(x) for x in (decoded.logits, decoded.boxes, decoded.hidden))
        paired = {"denoising": noisy.pick(logits[:, :, Q:], boxes[:, :, Q:])}
        return Predictions(logits[:, :, :Q], boxes[:, :, :Q], proposals, hidden[:, :, :Q], paired=paired)

    def tokens(self, levels: Sequence[Tensor], mask: Tensor) -> tuple[FeatureTokens, Tensor]:
        """Levels [B, D, H, W] and padding mask [B, H, W] of the images -> tokens and their positions [B, S, D]."""
        masks = [resize_mask(mask, level.shape[-2:]) for level in levels]
        positions = [(self.position(m) + embed).flatten(1, 2) for m, embed in zip(masks, self.level_embed, strict=True)]
        tokens, spatial_shapes = flatten_levels(list(levels))
        features = FeatureTokens(
            tokens,
            spatial_shapes,
            torch.cat([m.flatten(1) for m in masks], 1),
            torch.stack([valid_ratio(m) for m in masks], 1),
        )
        return features, torch.cat(positions, 1)

    def scores(self, logits: Tensor) -> Tensor:
        """The probability of every class, from logits [..., C]."""
        return logits.float().sigmoid()

    @torch.no_grad()
    def decode(self, predictions: Predictions, batch: ImageBatch) -> list[tuple[Tensor, Tensor, Tensor]]:
        """The detections of each image, best first.

        Returns:
            (scores [n], labels [n], boxes [n, 4]) per image; boxes (x0, y0, x1, y1) in pixels of the original image.
        """
        scores, labels, queries = top_predictions(predictions.logits[-1].float(), self.max_detections)
        boxes = predictions.boxes[-1].float().take_along_dim(queries[..., None], 1)
        return list(zip(scores, labels, scale_to_pixels(boxes, batch), strict=True))


def valid_ratio(mask: Tensor) -> Tensor:
    """[B, 2]: the part of (width, height) of a padding mask [B, H, W] that is no padding."""
    width = (~mask[:, 0]).float().mean(1)
    height = (~mask[:, :, 0]).float().mean(1)
    return torch.stack([width, height], -1)
