"""Token Cropr: tokens are ranked by queries that are trained by auxiliary predictions of the task."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mmtr.errors import UserError
from mmtr.ops.attention import attention
from mmtr.ops.query_scores import NORM_EPS, query_scores, within_regions
from mmtr.registry import TOKEN_REDUCERS
from mmtr.settings import Choice, Flag, Letters, Maybe, Number, Whole
from mmtr.tokens import Tokens

from .auxiliary import TASKS, note_output
from .base import BackboneInfo
from .giving_back import RESTORE_DROPPED
from .multiples import MULTIPLE
from .pruning import FUSION, LAYERS, LEAVING, PruneReducer


class AuxiliaryHead(nn.Module):
    """An auxiliary head for training: cross-attention of learned queries to the tokens, MLP and classifier.

    Args:
        channels: Number of channels of the tokens, C.
        num_queries: Number of queries, M.
        num_classes: Number of classes, K.
        num_heads: Number of attention heads; there is an output projection if there is more than one.
        projections: Those of ``q``, ``k``, ``v`` that have a linear projection.
        pre_norm: Whether tokens are normalised before attention.
        mlp_ratio: Channels of the MLP's hidden layer, as a multiple of C; 0: no MLP.
    """

    def __init__(
        self,
        channels: int,
        num_queries: int,
        num_classes: int,
        num_heads: int,
        projections: Sequence[str],
        pre_norm: bool,
        mlp_ratio: float,
    ):
        super().__init__()
        self.num_heads = num_heads
        self.queries = nn.Parameter(torch.empty(num_queries, channels))
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS) if pre_norm else nn.Identity()
        self.q, self.k, self.v = (
            nn.Linear(channels, channels, bias=False) if name in projections else nn.Identity() for name in 'qkv'
        )
        self.proj = nn.Linear(channels, channels) if num_heads > 1 else nn.Identity()
        width = int(channels * mlp_ratio)
        self.mlp = (
            None
            if width == 0
            else nn.Sequential(
                nn.LayerNorm(channels, eps=NORM_EPS), nn.Linear(channels, width), nn.GELU(), nn.Linear(width, channels)
            )
        )
        self.head = nn.Sequential(nn.LayerNorm(channels), nn.Linear(channels, num_classes))
        self.init_weights()

    def init_weights(self) -> None:
        """Initialise queries and classifier as published; other layers keep torch's initialisation."""
        nn.init.trunc_normal_(self.queries, std=self.queries.shape[1] ** -0.5)
        nn.init.trunc_normal_(self.head[1].weight, std=0.02)
        nn.init.zeros_(self.head[1].bias)

    def scorer(self) -> Tensor:
        """Return the vector (C,) for ``query_scores``: the projected sum of the queries times the norm's weight."""
        with torch.autocast(self.queries.device.type, enabled=False):
            scorer = self.queries.detach().float().sum(0)
            if isinstance(self.q, nn.Linear):
                scorer = self.q.weight.detach().float() @ scorer
            if isinstance(self.k, nn.Linear):
                scorer = scorer @ self.k.weight.detach().float()
            return scorer * self.norm.weight.detach().float() if isinstance(self.norm, nn.LayerNorm) else scorer

    def forward(self, x: Tensor) -> Tensor:
        """Predict the class logits of each query: (B, N, C) -> (B, M, K)."""
        x = self.norm(x)
        q = self.q(self.queries).expand(x.shape[0], -1, -1)
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in (q, self.k(x), self.v(x)))
        seen = self.proj(attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head(seen if self.mlp is None else seen + self.mlp(seen))


@TOKEN_REDUCERS.register_module()
class Cropr(PruneReducer):
    """Token Cropr (Bergner et al., arXiv 2412.00965).

    After each of ``layers``, an auxiliary head with learned queries predicts the task from the tokens, without
    gradient to these; the queries score the tokens, and those of lowest score are dropped. In evaluation, one vector a
    layer scores them. Training needs a model that computes ``losses``, such as ``mmtr.EncoderDecoder``.

    Args:
        backbone: Layers, channels and prefix tokens of the backbone.
        r: Number of patch tokens dropped after each of ``layers``; below 1, a share of the patches of the grid; or a
            list with one value for each of ``layers``. None: 55/64 of the patches, in equal parts.
        layers: Layers, counted from 0, after which tokens are dropped. None: all but the last two.
        multiple_of: Shortened sequences, prefix tokens included, are shortened further to a multiple of this.
        fusion: ``llf``, last layer fusion: tokens are restored before the last layer; ``none``: after it.
        restore: Value that a dropped patch gets when tokens are restored, see ``drop``; the paper's is ``last``.
        region: Side, in patches, of square regions within which tokens are ranked, so that each loses the same share.
            None: tokens are ranked in the whole image, as in the paper.
        task: Prediction of the auxiliary heads: ``semantic``, the label of each patch; ``multilabel``, the classes of
            the boxes of the image; ``classification``, the label of the image.
        num_classes: Number of classes of the task, as in the main head.
        num_heads: Number of attention heads of an auxiliary head; more than one have an output projection.
        projections: Those of ``'q'``, ``'k'``, ``'v'`` that have a linear projection.
        pre_norm: Whether an auxiliary head normalises tokens before attention.
        mlp_ratio: Channels of the MLP's hidden layer in an auxiliary head, as a multiple of C; 0: no MLP.
        deploy: Whether it has the scoring vectors only, without auxiliary heads, for checkpoints of
            tools/deploy_model.py.

    Raises:
        UserError: A setting has a value that is not allowed, alone, with another one or with this backbone; a
            checkpoint of training is loaded with ``deploy=True``, or the reverse; in training, see ``Task``.
    """

    nothing = dict(r=0)
    trained = True

    def __init__(
        self,
        backbone: BackboneInfo,
        r: LEAVING = None,
        layers: LAYERS = None,
        multiple_of: MULTIPLE = None,
        fusion: FUSION = 'llf',
        restore: RESTORE_DROPPED = 'last',
        region: Maybe(Whole(1, 1024)) = None,
        task: Choice(*TASKS) = 'semantic',
        num_classes: Whole(1, 2**16) = 150,
        num_heads: Whole(1, 1024) = 1,
        projections: Letters('qkv') = (),
        pre_norm: Flag() = False,
        mlp_ratio: Number(least=0, most=64) = 4.0,
        deploy: Flag() = False,
    ):
        super().__init__(backbone, restore, r, layers, multiple_of, fusion)
        channels = backbone.embed_dims
        if channels % num_heads:
            raise UserError(
                f'token_reduction.num_heads={num_heads} does not divide the {channels} channels of this backbone.'
            )
        self.region, self.num_classes, self.pre_norm, self.deploy = region, num_classes, pre_norm, deploy
        if deploy:
            self.scorers = nn.ParameterDict(
                {
                    name: nn.Parameter(torch.empty(channels), requires_grad=False)
                    for name in map(self._name, self.layers)
                }
            )
            for scorer in self.scorers.values():
                nn.init.trunc_normal_(scorer, std=channels**-0.5)
            return
        if task == 'semantic' and backbone.grid is None:
            raise UserError(
                "token_reduction.task='semantic' has a query for each patch of a training image, and this "
                'backbone does not tell how many there are: give it img_size.'
            )
        self.task = TASKS[task](self.num_classes, backbone.grid)
        self.heads = nn.ModuleDict(
            {
                name: AuxiliaryHead(
                    channels, self.task.num_queries, num_classes, num_heads, projections, pre_norm, mlp_ratio
                )
                for name in map(self._name, self.layers)
            }
        )

    @staticmethod
    def _name(i):
        return f'layer_{i:02}'

    def before_layer(self, i: int, tokens: Tokens) -> Tokens:
        """Note the auxiliary predictions in training; then drop tokens as ``PruneReducer``."""
        if self.training and not self.deploy and i - 1 in self.layers:
            name = self._name(i - 1)
            note_output(self, name, self.heads[name](tokens.x.detach()))
        return super().before_layer(i, tokens)

    def score(self, i: int, tokens: Tokens) -> Tensor:
        """Score tokens by the sum of attention logits over heads and queries, (B, N), ranked within regions if set."""
        name = self._name(i)
        scorer = self.scorers[name] if self.deploy else self.heads[name].scorer()
        scores = query_scores(tokens.patches, scorer, self.pre_norm)
        if self.region is None:
            return scores
        return within_regions(scores, tokens.positions, tokens.grid, self.region)

    def losses(self, outputs: dict[str, Tensor], data_samples: list) -> dict[str, Tensor]:
        """Compute one loss for each auxiliary head."""
        return (
            {}
            if self.deploy
            else {
                f'{name}.{self.task.loss_name}': self.task.loss(logits, data_samples)
                for name, logits in outputs.items()
            }
        )

    def deployed_state_dict(self) -> dict[str, Tensor]:
        """Return the state dict of the same reducer with ``deploy=True``: one scoring vector a layer."""
        return {f'scorers.{name}': head.scorer() for name, head in self.heads.items()}

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Every loader of torch and mmengine calls this method.
        wrong = f'{prefix}{"heads" if self.deploy else "scorers"}.'
        if any(name.startswith(wrong) for name in state_dict):
            raise UserError(
                'This checkpoint is of training, it holds the auxiliary heads of Cropr, and the config has '
                'token_reduction.deploy=True: convert it with tools/deploy_model.py, or set deploy=False.'
                if self.deploy
                else 'This checkpoint was written by tools/deploy_model.py, without the auxiliary heads of Cropr, and '
                'the config has token_reduction.deploy=False: set deploy=True, or give the checkpoint of training.'
            )
        super()._load_from_state_dict(state_dict, prefix, *args)
