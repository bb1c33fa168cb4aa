"""The first stage of a two-stage Deformable DETR: every encoder cell proposes a box, the best become queries."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..structures import Predictions
from .deformable_transformer import FeatureTokens, cell_centres
from .position import box_embedding
from .transformer import xavier_init

CELL_SIZE = 0.05  # side of the unrefined proposal at the finest level, as a fraction of the image; doubles per level
MARGIN = 0.01  # proposals closer than this to 0 or 1 in any number are not used


class ProposalGenerator(nn.Module):
    """Scores and corrects a square box at every cell; the best boxes start the decoder.

    Args:
        dim: width of the encoder's memory.
        num_queries: proposals that go on.
        class_head: from memory to logits; the first one tells objects from background.
        box_head: from memory to a correction of the cell's box in logit space.
    """

    def __init__(self, dim: int, num_queries: int, class_head: nn.Module, box_head: nn.Module) -> None:
        super().__init__()
        self.dim, self.num_queries = dim, num_queries
        self.memory_proj = nn.Linear(dim, dim)
        self.memory_norm = nn.LayerNorm(dim)
        self.query_proj = nn.Linear(2 * dim, 2 * dim)
        self.query_norm = nn.LayerNorm(2 * dim)
        xavier_init(self)
        self.class_head, self.box_head = class_head, box_head

    def forward(self, memory: FeatureTokens) -> tuple[Predictions, Tensor, Tensor, Tensor]:
        """Propose from the encoder's output.

        Returns:
            All proposals as `Predictions` [1, B, S, ...]; and of the chosen ones the boxes [B, Q, 4], the position part
            [B, Q, D] and the content part [B, Q, D] of the queries.

        Raises:
            ValueError: fewer cells than queries.
        """
        if memory.tokens.shape[1] < self.num_queries:
            raise ValueError(
                f"{self.num_queries} queries cannot be chosen from {memory.tokens.shape[1]} encoder cells: "
                "use larger images or fewer queries"
            )
        anchors, usable = cell_boxes(memory)
        tokens = self.memory_norm(self.memory_proj(memory.tokens.masked_fill(~usable[..., None], 0.0)))
        logits = self.class_head(tokens)
        with torch.autocast(tokens.device.type, enabled=False):
            boxes = (self.box_head(tokens.to(self.memory_norm.weight.dtype)) + anchors).sigmoid()
        # What cannot be used takes part in the choice, as in the release: with no memory it rarely wins.
        best = logits[..., 0].topk(self.num_queries).indices
        # Not take_along_dim, which would fix an exported graph's batch size.
        chosen = boxes.gather(1, best[..., None].expand(-1, -1, 4)).detach()
        query = self.query_norm(self.query_proj(box_embedding(chosen, self.dim // 2)))
        query_pos, content = query.chunk(2, -1)
        return Predictions(logits[None], boxes[None]), chosen, query_pos, content


def cell_boxes(memory: FeatureTokens) -> tuple[Tensor, Tensor]:
    """The unrefined proposals.

    Returns:
        Boxes [B, S, 4] in logit space, +inf where they cannot be used; and where they can [B, S] bool: not under
        padding and well inside the image.
    """
    centres = cell_centres(memory)
    sizes = torch.cat(
        [
            torch.full((height * width, 2), CELL_SIZE * 2.0**level, device=centres.device)
            for level, (height, width) in enumerate(memory.spatial_shapes)
        ]
    )
    boxes = torch.cat([centres, sizes.expand_as(centres)], -1)
    usable = ((boxes > MARGIN) & (boxes < 1 - MARGIN)).all(-1)
    if memory.mask is not None:
        usable = usable & ~memory.mask
    return boxes.logit().where(usable[..., None], torch.inf), usable
