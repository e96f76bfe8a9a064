"""Expediting: cluster tokens before a layer, reconstruct them after the last one."""

from mmtr.errors import UserError
from mmtr.ops.clustering import cluster_tokens, reconstruction
from mmtr.ops.pooling import cell_centres
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import Choice, Either, Layer, Maybe, Number, Pair, Whole
from mmtr.undo import Assigned, Forgotten

from .base import TokenReducer, default_start
from .giving_back import RESTORE, RESTORE_AT, check_after_head


@TOKEN_REDUCERS.register_module()
class Expediting(TokenReducer):
    """Liang et al., "Expediting Large-Scale Vision Transformer for Dense Prediction without Fine-tuning".

    Args:
        backbone: See ``TokenReducer``.
        layer: Tokens are clustered before this layer, alpha, counted from 0: so many layers see every
            token. None: 10/24 of the depth.
        grid: Rows and columns of clusters, h and w, one value for both: a whole number, or a fraction
            up to 1.0 of the rows and columns of patches.
        n_iters: Rounds of clustering.
        window: Side, in clusters, of the square around its own in which a token looks for one; odd.
        temperature: Factor of the squared distances in clustering.
        k: Clusters that a token is reconstructed from.
        recon_temperature: Factor of the squared distances in reconstruction.
        normalize: What the shares of these clusters have: ``l2`` a Euclidean norm of 1, as the
            released code; ``l1`` a sum of 1. None: ``l2`` for ``restore='copy'``, else ``l1``,
            since a change must not be scaled.
        restore: ``residual``: give each token its own value and the change of its clusters; ``copy`` the
            clusters, as the paper.
        restore_at: ``before_norm``, or, with ``copy``, ``after_head``: the backbone's final norm and a segmentor's
            head run on the clusters, and the logits are reconstructed, as in the released code for a ViT.

    Raises:
        UserError: A setting cannot work, alone or with this backbone; at the first forward, ``grid``
            has more rows or columns than there are patches.
    """

    nothing = dict(grid=1.0)
    within_windows = True
    table_interpolation = 'bilinear'  # as the released code

    def __init__(
        self,
        backbone,
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
    ):
        super().__init__(backbone)
        check_after_head(backbone, restore, restore_at)
        self.restoration, self.restore_at = restore, restore_at
        self.layer = default_start(backbone.depth) if layer is None else layer
        self.grid = grid
        if backbone.in_windows:
            # Windows at the border are smaller, and have clusters in proportion.
            self.grid = tuple(n / whole for n, whole in zip(self._clusters(backbone.grid), backbone.grid))
        self.n_iters, self.window, self.k = n_iters, window, k
        self.temperature, self.recon_temperature = temperature, recon_temperature
        self.normalize = normalize or ('l1' if restore == 'residual' else 'l2')

    @classmethod
    def search_space(cls, trial, backbone):
        """See ``TokenReducer``."""
        return dict(
            grid=trial.suggest_float('grid', 0.3, 0.95, step=0.05),
            layer=trial.suggest_int('layer', 0, backbone.depth - 1),
        )

    def _clusters(self, grid):
        clusters = tuple(n if isinstance(n, int) else max(round(n * size), 1) for n, size in zip(self.grid, grid))
        if any(n > size for n, size in zip(clusters, grid)):
            raise UserError(
                f'token_reduction.grid={self.grid} is more than the {grid[0]}x{grid[1]} patches of this '
                f'{"window" if self.backbone.in_windows else "image"}: give at most as many rows and '
                'columns, or fractions up to 1.0.'
            )
        return clusters

    def before_layer(self, i, tokens):
        """Token clustering layer."""
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

    def grid_schedule(self, grid, depth):
        """See ``TokenReducer``; raises ``UserError`` where the patch grid is smaller than ``grid``."""
        clusters = self._clusters(grid)
        return [clusters if i >= self.layer else grid for i in range(depth)]
