"""What the query-based 3D heads share: queries that start at reference points and refine them layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import boxes3d
from ..structures import Predictions
from .heads import MLP, inverse_sigmoid, set_class_prior
from .transformer import xavier_init


def class_head(dim: int, num_classes: int) -> nn.Sequential:
    """From queries [..., D] to class logits [..., C]."""
    classifier = nn.Linear(dim, num_classes)
    set_class_prior(classifier)
    return nn.Sequential(
        nn.Linear(dim, dim), nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, dim), nn.LayerNorm(dim), nn.ReLU(), classifier
    )


def in_metres(places: Tensor, pc_range: Tensor) -> Tensor:
    """Points [..., 3] in [0, 1] of a range (x0, y0, z0, x1, y1, z1) -> metres."""
    low, high = pc_range[:3], pc_range[3:]
    return places * (high - low) + low


def in_range(points: Tensor, pc_range: Tensor) -> Tensor:
    """Points [..., 3] in metres -> [0, 1] of a range; those outside are moved to its border."""
    low, high = pc_range[:3], pc_range[3:]
    return ((points - low) / (high - low)).clamp(0, 1)


@dataclass
class Proposals:
    """Boxes that somebody else has seen, for queries to start from. Codes and logits have no gradient."""

    codes: Tensor  # [B, K, 10] box codes
    logits: Tensor  # [B, K, C]
    features: Tensor  # [B, K, D] what they were seen by

    @staticmethod
    def joined(proposals: Sequence[Proposals | None]) -> Proposals | None:
        """Those of several sources; None where there are none."""
        found = [(p.codes, p.logits, p.features) for p in proposals if p is not None]
        return Proposals(*(torch.cat(parts, 1) for parts in zip(*found, strict=True))) if found else None


class BoxQueryHead(nn.Module):
    """Queries with a 3D reference point each, which every layer of a decoder moves (DETR3D, BEVFormer).

    Args:
        num_classes: of the detector.
        embed_dim: width of the queries.
        num_queries: that start at points which are learned.
        num_proposals: queries beside them, which start from boxes that `refine` is given.
        num_layers: decoder layers.
        pc_range: (x0, y0, z0, x1, y1, z1) in metres, lidar frame, that reference points cover.
        make_layer: builds a decoder layer.
    """

    pc_range: Tensor

    def __init__(
        self,
        num_classes: int,
        embed_dim: int,
        num_queries: int,
        num_proposals: int,
        num_layers: int,
        pc_range: Sequence[float],
        make_layer: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.register_buffer("pc_range", torch.tensor(pc_range, dtype=torch.float32), persistent=False)
        self.query_embed = nn.Embedding(num_queries, 2 * embed_dim)  # position, content
        self.reference_points = nn.Linear(embed_dim, 3)
        said = num_classes + boxes3d.CODE_SIZE + embed_dim
        self.proposal_embed = MLP(said, embed_dim, 2 * embed_dim) if num_proposals else None  # position, content
        self.layers = nn.ModuleList(make_layer() for _ in range(num_layers))
        self.class_heads = nn.ModuleList(class_head(embed_dim, num_classes) for _ in range(num_layers))
        self.box_heads = nn.ModuleList(
            MLP(embed_dim, embed_dim, embed_dim, boxes3d.CODE_SIZE) for _ in range(num_layers)
        )
        xavier_init(self.reference_points)
        nn.init.zeros_(self.reference_points.bias)

    def refine(
        self,
        attend: Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor],
        batch_size: int,
        proposals: Proposals | None = None,
    ) -> Predictions:
        """Run the decoder.

        Args:
            attend: (layer, query [B, Q, D], query position [B, Q, D], reference [B, Q, 3] in [0, 1] of the range) ->
                query.
            batch_size: B.
            proposals: `num_proposals` for each frame; centres outside the range start at its border.

        Returns:
            See `Predictions`; its hidden states and references are filled in.
        """
        query_pos, query = self.query_embed.weight.expand(batch_size, -1, -1).chunk(2, -1)
        # Coordinates stay in float32: bfloat16 would round a range of 100 m to steps of 0.4 m.
        with torch.autocast(query.device.type, enabled=False):
            reference = self.reference_points(query_pos).sigmoid()
            start = reference.new_zeros(*reference.shape[:2], boxes3d.CODE_SIZE)
            if self.proposal_embed is not None and proposals is not None:
                starts = in_range(proposals.codes[..., [0, 1, 4]], self.pc_range)
                placed = boxes3d.with_centres(proposals.codes, inverse_sigmoid(starts))
                said = torch.cat([proposals.logits, placed, proposals.features], -1)
                proposal_pos, proposal = self.proposal_embed(said).chunk(2, -1)
                query_pos, query = torch.cat([query_pos, proposal_pos], 1), torch.cat([query, proposal], 1)
                reference, start = torch.cat([reference, starts], 1), torch.cat([start, proposals.codes], 1)
        logits, boxes, hidden, references = [], [], [], [reference]
        for layer, class_head, box_head in zip(self.layers, self.class_heads, self.box_heads, strict=True):
            query = attend(layer, query, query_pos, reference)
            with torch.autocast(query.device.type, enabled=False):
                code = box_head(query.to(reference.dtype))
                refined = (code[..., [0, 1, 4]] + inverse_sigmoid(reference)).sigmoid()
            boxes.append(boxes3d.with_centres(start + code, self.to_metres(refined)))
            logits.append(class_head(query))
            hidden.append(query)
            reference = refined.detach()
            references.append(reference)
        return Predictions(
            torch.stack(logits), torch.stack(boxes), hidden=torch.stack(hidden), references=torch.stack(references)
        )

    def to_metres(self, reference: Tensor) -> Tensor:
        """Points [..., 3] in [0, 1] of the range -> metres."""
        return in_metres(reference, self.pc_range)
