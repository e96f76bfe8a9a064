"""Expediting: tokens are clustered before a layer, and reconstructed after the last one."""

from typing import Any

from mmtr.errors import UserError
from mmtr.ops.clustering import cluster_tokens, reconstruction
from mmtr.ops.pooling import cell_centres
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import Choice, Either, Layer, Maybe, Number, Pair, Whole
from mmtr.tokens import Tokens
from mmtr.undo import Assigned, Forgotten

from .base import BackboneInfo, TokenReducer, default_start
from .giving_back import RESTORE, RESTORE_AT, check_after_head
from .multiples import MULTIPLE, shortened_grid
from .residual_code import restoration


@TOKEN_REDUCERS.register_module()
class Expediting(TokenReducer):
    """Expediting: tokens are clustered before a layer, and reconstructed after the last one.

    Liang et al., "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning".

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        layer: Layer, counted from 0, before which tokens are clustered: the paper's alpha, the number of layers that
            see every token. None: 10/24 of the depth.
        grid: Rows and columns of clusters, h and w, one value for both: a whole number, or a fraction up to 1.0 of
            the rows and columns of patches.
        n_iters: Number of clustering iterations.
        window: Side, in clusters, of the square around its own cell in which a token is compared with clusters; odd.
        temperature: Factor of the squared distances in clustering.
        k: Number of nearest clusters that a token is reconstructed from.
        recon_temperature: Factor of the squared distances in reconstruction.
        normalize: Norm by which the weights of these clusters are divided: ``l2``, their Euclidean norm, as in the
            released code; ``l1``, their sum. None: ``l2`` for ``restore='copy'``, else ``l1``, since a change must not
            be scaled.
        restore: Value of a restored patch: ``residual``, its own value plus the change of its clusters; ``copy``, the
            weighted sum of its clusters, as in the paper.
        restore_at: ``before_norm``; or, with ``copy``, ``after_head``: the backbone's final norm and a segmentor's
            head run on the clusters, and the logits are reconstructed, as in the released code for a ViT.
        multiple_of: What is left, with prefix tokens, is reduced further to a multiple of this, by rows and columns.

    Raises:
        UserError: A setting has a value that is not allowed, alone or with this backbone; at the first forward:
            ``grid`` has more rows or columns than there are patches.
    """

    nothing = dict(grid=1.0)
    leaves_grid = True
    table_interpolation = 'bilinear'  # as in the released code

    def __init__(
        self,
        backbone: BackboneInfo,
        layer: Maybe(Layer()) = None,
        grid: Pair(Either(Number(above=0, most=1, noun='a fraction', fraction=True), Whole(1, 4096))) = 0.7,
        n_iters: Whole(1, 100) = 5,
        window: Whole(1, 255, odd=True) = 5,
        temperature: Number(above=0) = 0.02,
        k: Whole(1, 4096) = 20,
        recon_temperature: Number(above=0) = 0.02,
        normalize: Maybe(Choice('l2', 'l1')) = None,
        restore: RESTORE = 'residual',
        restore_at: RESTORE_AT = 'before_norm',
        multiple_of: MULTIPLE = None,
    ):
        super().__init__(backbone)
        check_after_head(backbone, restore, restore_at)
        self.restoration, self.restore_at = restoration(restore, backbone), restore_at
        self.layer = default_start(backbone.depth) if layer is None else layer
        self.grid, self.multiple_of = grid, multiple_of or 1
        if backbone.in_windows:
            # Smaller windows at the border have proportionally fewer clusters.
            self.grid = tuple(n / whole for n, whole in zip(self._clusters(backbone.grid), backbone.grid))
        self.n_iters, self.window, self.k = n_iters, window, k
        self.temperature, self.recon_temperature = temperature, recon_temperature
        self.normalize = normalize or ('l2' if restore == 'copy' else 'l1')

    @classmethod
    def search_space(cls, trial: Any, backbone: BackboneInfo) -> dict:
        """Draw settings for a search, see ``TokenReducer``."""
        return dict(
            grid=trial.suggest_float('grid', 0.3, 0.95, step=0.05),
            layer=trial.suggest_int('layer', backbone.first, backbone.depth - 1),
        )

    def strength(self) -> dict:
        """Return ``grid`` as fractions, see ``TokenReducer``: larger counts would not fit smaller images."""
        grid = self.backbone.grid
        if not any(isinstance(n, int) for n in self.grid):
            return super().strength()
        if grid is None or self.backbone.needs_grid:  # then it is not that of training images
            raise UserError(
                f'token_reduction.grid={self.grid} has counts, of which no share is known here, so that the reduction '
                'cannot rise: give fractions up to 1.0, or take mmtr.ReductionCurriculumHook out of custom_hooks.'
            )
        return dict(grid=tuple(n if isinstance(n, float) else n / whole for n, whole in zip(self.grid, grid)))

    def _clusters(self, grid):
        clusters = tuple(n if isinstance(n, int) else max(round(n * size), 1) for n, size in zip(self.grid, grid))
        if any(n > size for n, size in zip(clusters, grid)):
            raise UserError(
                f'token_reduction.grid={self.grid} is more than the {grid[0]}x{grid[1]} patches of this '
                f'{"window" if self.backbone.in_windows else "image"}: give at most as many rows and '
                'columns, or fractions up to 1.0.'
            )
        clusters = tuple(map(self.backbone.fitting, clusters, grid))
        return shortened_grid(clusters, grid, grid, self.backbone.num_prefix, self.multiple_of)

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Cluster the tokens before ``layer``: the token clustering layer."""
        if i != self.layer or self._clusters(tokens.grid) == tokens.grid:
            return tokens
        x, clusters = tokens.patches, self._clusters(tokens.grid)
        centroids, size = cluster_tokens(x, tokens.grid, clusters, self.n_iters, self.window, self.temperature)
        index = cell_centres(tokens.grid, clusters, x.device).expand_as(size)
        if tokens.gives_back:
            undo = Assigned(reconstruction(x, centroids, self.k, self.recon_temperature, self.normalize))
        else:
            undo = Forgotten(index, tokens.grid)
        return tokens.reduced(centroids, undo, index, size, self.restoration)

    def grid_schedule(self, grid: tuple[int, int], depth: int) -> list[tuple[int, int]]:
        """Return the token grid in each layer; raise a ``UserError`` if the patch grid is smaller than ``grid``."""
        clusters = self._clusters(grid)
        return [clusters if i >= self.layer else grid for i in range(depth)]
