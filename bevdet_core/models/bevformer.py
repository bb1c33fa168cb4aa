"""BEVFormer: 3D detection from cameras and time through a bird's-eye view (Li et al., ECCV 2022)."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..structures import ImageBatch, Predictions
from .bev_boxes import BevBoxHead
from .bev_encoder import BevEncoder, BevEncoderLayer, BevGrid, PreviousView
from .bev_fusion import BevFusion, PlacedView
from .bev_memory import BevMemory, SeenFrame, rounds
from .cameras import calibration, camera_features, check_features
from .deformable_transformer import DeformableDecoderLayer, FeatureTokens
from .ego_motion import SIGNALS, FramePose, frame_poses, motion_between, stack_motions
from .perspective import look
from .position import LearnedPositionEmbedding
from .query_head import BoxQueryHead, Proposals
from .rig_detector import RigDetector
from .transformer import flatten_levels, xavier_init

PUBLISHED_LEVELS = 4  # level embeddings that the published networks have, however few levels they read
PUBLISHED_CENTRE = 100.0  # cells; about which the release turns a view, whatever its size


@dataclass
class PastView:
    """The view of an earlier frame, and how the rig has moved since."""

    bev: Tensor  # [B, rows * columns, D]
    shift: Tensor  # [B, 2] metres, see `EgoMotion`
    turn: Tensor  # [B] radians, likewise
    known: Tensor | None = None  # [B] bool: which frames have one; None: all


class BevFormerHead(BoxQueryHead):
    """Encoder, decoder and prediction heads: from feature maps of all cameras to boxes.

    Args:
        num_classes: of the detector.
        bev_shape: (rows, columns) of the bird's-eye view, which covers `pc_range`.
        num_cameras: cameras of the rig.
        num_levels: levels of the feature pyramid.
        embed_dim: width of cells, queries and features.
        num_queries: see `BoxQueryHead`.
        num_proposals: likewise.
        encoder_layers: layers that fill the view.
        decoder_layers: each refines the reference points of the one before.
        num_heads: of all attentions.
        pillar_points: anchors in the pillar over a cell.
        spatial_points: samples per head and level around the anchors that a camera sees.
        temporal_points: samples per head in each of the two views.
        decoder_points: samples per head in the view around a query.
        ffn_dim: hidden width of the feed-forward layers.
        dropout: rate, while training.
        pc_range: (x0, y0, z0, x1, y1, z1) in metres, lidar frame, that cells and reference points cover.
        release_quirks: see `config.BevFormerConfig`.
        fused_views: earlier views that are taken up through convolutions; 0: the one before, through temporal
            self-attention.
    """

    def __init__(
        self,
        num_classes: int,
        bev_shape: tuple[int, int] = (200, 200),
        num_cameras: int = 6,
        num_levels: int = 4,
        embed_dim: int = 256,
        num_queries: int = 900,
        num_proposals: int = 0,
        encoder_layers: int = 6,
        decoder_layers: int = 6,
        num_heads: int = 8,
        pillar_points: int = 4,
        spatial_points: int = 8,
        temporal_points: int = 4,
        decoder_points: int = 4,
        ffn_dim: int = 512,
        dropout: float = 0.1,
        pc_range: Sequence[float] = (-51.2, -51.2, -5.0, 51.2, 51.2, 3.0),
        release_quirks: bool = False,
        fused_views: int = 0,
    ) -> None:
        layer = partial(DeformableDecoderLayer, embed_dim, num_heads, 1, decoder_points, ffn_dim, dropout)
        super().__init__(num_classes, embed_dim, num_queries, num_proposals, decoder_layers, pc_range, layer)
        self.num_cameras, self.num_levels = num_cameras, num_levels
        rows, columns = bev_shape
        self.grid = BevGrid(bev_shape, pc_range, pillar_points)
        points = (spatial_points, 0 if fused_views else temporal_points)
        self.encoder = BevEncoder(
            self.grid,
            [
                BevEncoderLayer(embed_dim, num_heads, num_levels, *points, ffn_dim, dropout)
                for _ in range(encoder_layers)
            ],
        )
        self.fusion = BevFusion(embed_dim, bev_shape, fused_views) if fused_views else None
        self.bev_embed = nn.Embedding(rows * columns, embed_dim)
        self.position = LearnedPositionEmbedding(embed_dim, rows, columns)
        self.camera_embed = nn.Parameter(torch.randn(num_cameras, embed_dim))
        self.level_embed = nn.Parameter(torch.randn(max(num_levels, PUBLISHED_LEVELS), embed_dim))
        self.motion_mlp = nn.Sequential(
            nn.Linear(SIGNALS, embed_dim // 2),
            nn.ReLU(),
            nn.Linear(embed_dim // 2, embed_dim),
            nn.ReLU(),
            nn.LayerNorm(embed_dim),
        )
        xavier_init(self.motion_mlp)
        for name, parameter in self.motion_mlp.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
        self.turn_centre, self.turn_extent = self.grid.origin, self.grid.extent
        if release_quirks:
            # The release turns the view as if its cells were squares.
            self.turn_centre, self.turn_extent = (PUBLISHED_CENTRE / columns, PUBLISHED_CENTRE / rows), (columns, rows)

    def encode(
        self,
        features: Sequence[Tensor],  # L x [B, N, D, H_l, W_l], fine to coarse
        lidar2img: Tensor,  # [B, N, 4, 4]
        image_size: tuple[int, int],  # (height, width) of the padded images
        signals: Tensor,  # [B, 18] of the motion since the last frame, see `ego_motion`
        past: Sequence[PastView] = (),  # the view before, or as many as are fused; none: no frame has any
        hidden: Tensor | None = None,  # [B, N] bool, cameras that nothing is read from; None: no such one
    ) -> Tensor:
        """The bird's-eye view [B, rows * columns, D].

        Raises:
            ValueError: more cameras than the head has weights for, or another number of levels.
        """
        check_features(features, self.num_cameras, self.num_levels)
        B, N = features[0].shape[:2]
        camera = self.camera_embed[:N, :, None, None]  # [N, D, 1, 1]
        levels = zip(features, self.level_embed, strict=False)
        maps = [(f + (camera + level[:, None, None]).to(f.dtype)).flatten(0, 1) for f, level in levels]
        tokens, spatial_shapes = flatten_levels(maps)
        query = self.bev_embed.weight + self.motion_mlp(signals)[:, None]
        query_pos = self.position.grid(*self.grid.shape).flatten(0, 1)
        seen = self.grid.seen(lidar2img, image_size, hidden)
        before = self.align(past[0]) if past and self.fusion is None else None
        bev = self.encoder(query, query_pos, tokens.unflatten(0, (B, N)), spatial_shapes, *seen, before)
        if self.fusion is None:
            return bev
        placed = [PlacedView(view.bev, self.grid.places_before(view.shift, view.turn), view.known) for view in past]
        return self.fusion(bev, placed)

    def align(self, view: PastView) -> PreviousView:
        """The view of the frame before, as it lies under the present one."""
        turned = self.grid.turned(view.bev, view.turn, self.turn_centre, self.turn_extent)
        return PreviousView(turned, view.shift / view.shift.new_tensor(self.grid.extent), view.known)

    def forward(self, bev: Tensor, proposals: Proposals | None = None) -> Predictions:
        """Boxes from a view [B, rows * columns, D] and proposed boxes.

        See `Predictions`; its hidden states and references are filled in.
        """
        view = FeatureTokens(bev, (self.grid.shape,), None, bev.new_ones(bev.shape[0], 1, 2))

        def attend(layer: nn.Module, query: Tensor, query_pos: Tensor, reference: Tensor) -> Tensor:
            return layer(view, query, query_pos, reference[:, :, None, :2])

        return self.refine(attend, bev.shape[0], proposals)


class BevFormer(RigDetector):
    """The detector.

    Args:
        backbone: images [B, 3, H, W] -> feature maps.
        neck: feature maps -> the levels that the head reads.
        head: see `BevFormerHead`.
        history: the earlier frames that one looks back at, in steps before it; without any it stands alone.
        max_gap: a frame that came more than this many seconds before the next one is no history.
        release_quirks: see `config.BevFormerConfig`.
        bev_boxes: reads the view too, see `BevBoxHead`. None: nothing does.
        *others: the further arguments of `RigDetector`.
    """

    head: BevFormerHead

    def __init__(
        self,
        backbone: nn.Module,
        neck: nn.Module,
        head: BevFormerHead,
        history: Sequence[int] = (1,),
        max_gap: float = 2.0,
        release_quirks: bool = False,
        bev_boxes: BevBoxHead | None = None,
        *others: Any,
    ) -> None:
        super().__init__(backbone, neck, head, *others)
        self.bev_boxes = bev_boxes
        self.history, self.max_gap, self.release_quirks = tuple(history), max_gap, release_quirks

    def new_memory(self) -> BevMemory | None:
        """A memory for frames that come in the order of time; None where every frame stands alone."""
        return BevMemory(self.max_gap, self.history) if self.history else None

    def training_memory(self, lanes: int) -> BevMemory:
        """A memory for a training that sees the frames of up to so many scenes by turns."""
        return BevMemory(self.max_gap, self.history, lanes, strict=False)

    def forward(self, batch: ImageBatch, memory: BevMemory | None = None) -> Predictions:
        """Detect objects in rig frames.

        Args:
            batch: the frames. While training, `batch.targets` feed the perspective head.
            memory: the frames of each scene come in the order of time, in this batch and from batch to batch, and see
                what came before. Without it a frame sees the earlier frames of the batch that have its owner, and its
                own `batch.history`, looked at without gradients and in evaluation mode.

        Raises:
            ValueError: the batch has no calibration, or another number of cameras than the head; frames of a scene
                that are not in the order of time; no poses, where there is history to use.
        """
        lanes: Sequence[Hashable] = batch.owners or range(len(batch.images))
        if memory is None or not self.history:
            memory = BevMemory(self.max_gap, self.history or (1,))
            if batch.history is not None and self.history:
                self.look_back(batch.history, memory)
        elif batch.scenes:
            lanes = batch.scenes
        predictions, _ = self._detect(batch, partial(self.encode, batch, lanes=lanes, memory=memory))
        memory.forget_others(lanes)
        return predictions

    def step(self, batch: ImageBatch, signals: Tensor, past: Sequence[PastView] = ()) -> tuple[Predictions, Tensor]:
        """Detect objects in frames whose past is at hand; nothing is looked up or remembered.

        This is the detector from tensors to tensors: what a compiled or an exported graph is made of.

        Args:
            batch: the frames, each of another lane.
            signals: see `BevFormerHead.encode`.
            past: likewise.

        Returns:
            The predictions, and the views [B, rows * columns, D] for the frames that follow.
        """
        rig = calibration(batch, "BEVFormer")
        size = (batch.images.shape[-2], batch.images.shape[-1])
        return self._detect(
            batch, lambda features: self.head.encode(features, rig.lidar2img, size, signals, past, rig.hidden)
        )

    def _detect(self, batch: ImageBatch, encode: Callable[[list[Tensor]], Tensor]) -> tuple[Predictions, Tensor]:
        """Predictions and views of frames; `encode` makes the views from the levels of all cameras."""
        rig = calibration(batch, "BEVFormer")
        features = camera_features(self.backbone, self.neck, batch, rig.shown)
        cells = look(self.perspective, features[0], batch, rig)
        bev = encode(features)
        bev_cells = None if self.bev_boxes is None else self.bev_boxes(bev)
        proposals = [None if c is None else c.proposals for c in (cells, bev_cells)]
        predictions = self.head(bev, Proposals.joined(proposals))
        return self.with_cells(predictions, batch, perspective=cells, bev=bev_cells), bev

    @torch.no_grad()
    def look_back(self, history: ImageBatch, memory: BevMemory) -> None:
        """Look at earlier frames, each in the lane of the sample that it belongs to."""
        was_training = self.training
        self.eval()
        try:
            rig = calibration(history, "BEVFormer")
            features = camera_features(self.backbone, self.neck, history, rig.shown)
            self.encode(history, features, history.owners, memory)
        finally:
            self.train(was_training)

    def encode(
        self, batch: ImageBatch, features: Sequence[Tensor], lanes: Sequence[Hashable], memory: BevMemory
    ) -> Tensor:
        """The views [B, rows * columns, D] of frames, each of which sees those before it in its lane."""
        rig = calibration(batch, "BEVFormer")
        poses = frame_poses(batch)
        height, width = batch.images.shape[-2:]
        levels = [f.unbind() for f in features]  # not indexed, which would fill a gradient of all frames for each round
        views: dict[int, Tensor] = {}
        for rows in rounds(lanes):
            every = len(rows) == len(lanes)  # as good as always outside of training: nothing is copied
            chosen = slice(None) if every else rows
            seen = [memory.recall(lanes[row], poses[row]) for row in rows]
            bev = self.head.encode(
                features if every else [torch.stack([frames[row] for row in rows]) for frames in levels],
                rig.lidar2img[chosen],
                (height, width),
                *self._past([poses[row] for row in rows], seen, batch.images.device),
                hidden=None if rig.hidden is None else rig.hidden[chosen],
            )
            views |= dict(zip(rows, bev, strict=True))
            for row in rows:
                memory.keep(lanes[row], SeenFrame(poses[row], views[row].detach()))
        return torch.stack([views[row] for row in range(len(lanes))])

    def _past(
        self, poses: Sequence[FramePose], seen: Sequence[Sequence[SeenFrame | None]], device: torch.device
    ) -> tuple[Tensor, list[PastView]]:
        """Signals and earlier views, as `BevFormerHead.encode` takes them."""
        signals, past = None, []
        for frames in zip(*seen, strict=True):  # those of one step back
            before = [None if frame is None else frame.pose for frame in frames]
            pairs = zip(poses, before, strict=True)
            motion = stack_motions([motion_between(*pair, self.release_quirks) for pair in pairs], device)
            signals = motion.signals if signals is None else signals  # since the last frame, which comes first
            views = [frame.bev for frame in frames if frame is not None]
            if not views:
                break
            known = None
            if len(views) < len(frames):
                known = torch.tensor([frame is not None for frame in frames], device=device)
                views = [torch.zeros_like(views[0]) if frame is None else frame.bev for frame in frames]
            past.append(PastView(torch.stack(views), motion.shift, motion.turn, known))
        assert signals is not None
        return signals, past
