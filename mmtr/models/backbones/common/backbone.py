"""The keys ``token_reduction`` and ``peft``, as every backbone has them."""

import logging
from typing import Optional

from mmengine.logging import print_log
from mmengine.model import PretrainedInit
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor, nn

from mmtr.declared import Declared
from mmtr.errors import UserError
from mmtr.ops.attention import check_backend
from mmtr.peft import build_peft
from mmtr.peft.freezing import freeze, frozen_modules
from mmtr.reducers import BackboneInfo
from mmtr.reducers.words import in_words
from mmtr.weights.fit import part_of, prefix_in, start_from
from mmtr.weights.tuned import complete, weights_in
from mmtr.words import some

from .arguments import STOCK


class TunableBackbone(Declared):
    """Mixin of a backbone that reduces tokens and may be frozen beside a ``peft``.

    A subclass has ``all_layers`` of ``ReducibleLayer``, ``shape`` and ``build_reducer``. It sets its reducer, then
    its ``peft``, when it is built, and calls ``_init_parts`` at the end of ``init_weights``. Its ``_fitted`` makes the
    weights of a file fit, and ``not_in_files`` names what is never in one.
    """

    inherited = STOCK
    #: Children that a ``peft`` does not freeze.
    trained_parts: tuple[str, ...] = ('peft', 'token_reducer')
    #: Whether what a ``peft`` freezes was ever filled from a file; until then it is random.
    has_frozen_weights = False

    @property
    def all_layers(self) -> list[nn.Module]:
        """The layers from the image on, as ``peft`` counts them."""
        return list(self.layers)

    @property
    def shape(self) -> BackboneInfo:
        """What its PEFT is told of it."""
        raise NotImplementedError

    def make_tunable(
        self, attn_backend: str, token_reduction: Optional[dict] = None, peft: Optional[dict] = None
    ) -> None:
        """Last, when a backbone is built: turn stock layers, if it has any, into ours, then set both keys."""
        check_backend(attn_backend)
        self._make_reducible(attn_backend)
        self.set_token_reduction(token_reduction)
        self.set_peft(peft)

    def _make_reducible(self, attn_backend):
        """Put twins in the place of stock layers."""

    def set_token_reduction(self, token_reduction: Optional[dict]) -> None:
        """Use another reducer, ``dict(type=..., **settings)``, or None; a line in the log says what it does."""
        reducer = self.build_reducer(token_reduction)
        if getattr(self, 'peft', None) is not None:
            self.peft.check_reducer(reducer)
        # As the rest of the backbone, which may be in use already.
        if not self.training:
            reducer.eval()
        self.token_reducer = reducer.to(next(self.parameters()).device)
        if token_reduction is not None:
            print_log(in_words(reducer), 'current')
        if reducer.caution:
            print_log(reducer.caution, 'current', logging.WARNING)

    def set_peft(self, peft: Optional[dict]) -> None:
        """Train what ``dict(type=..., **settings)`` says, and freeze all but ``trained_parts``; None: train all.

        Once, when the backbone is built and has its reducer.
        """
        self.peft, self.has_frozen_weights = None, False
        if peft is not None:
            built = build_peft(peft, self.shape)
            built.check_reducer(self.token_reducer)
            built.attach(self.all_layers)
            self.peft = built
            freeze(self)

    def tune(self, peft: dict) -> None:
        """``set_peft`` for a backbone that has its weights: they are what is frozen, wherever they are from."""
        self.set_peft(peft)
        like = next(self.parameters())
        self.peft.init_weights()
        self.peft.to(like.device, like.dtype).train(self.training)
        self.has_frozen_weights = self.is_init = True  # mmengine initialises what is not

    def train(self, mode: bool = True) -> 'TunableBackbone':
        """As stock, but what is frozen stays in eval mode: a fixed function, without dropout and drop path."""
        super().train(mode)
        if self.peft is not None:
            for module in frozen_modules(self):
                module.eval()
        return self

    @property
    def pretrained_file(self) -> Optional[str]:
        """The file that ``init_weights`` loads; None: it draws the weights at random."""
        cfg = self.init_cfg
        pretrained = isinstance(cfg, dict) and cfg.get('type') in ('Pretrained', PretrainedInit)
        return cfg.get('checkpoint') if pretrained else None

    def load_pretrained(self) -> None:
        """Fill the backbone from its ``pretrained_file``: read, unwrap, strip, convert and resize, compare, load.

        ``init_cfg.prefix``, as mmengine's, says where the backbone is in the file of a whole model.

        Raises:
            UserError: The file cannot be read, or would leave something random or unused.
        """
        path, prefix = self.pretrained_file, (self.init_cfg.get('prefix') or '').rstrip('.')
        file = CheckpointLoader.load_checkpoint(path, map_location='cpu', logger='silent')
        # Official releases keep their weights under 'model'. No runner looks there, so weights_in does not either.
        inside = file.get('model')
        whole = weights_in(inside if 'state_dict' not in file and isinstance(inside, dict) else file)
        state = self._fitted(part_of(whole, prefix), path)
        state = {name: value for name, value in state.items() if not name.startswith('token_reducer.')}
        own = {name: value.shape for name, value in self.state_dict().items()}
        needed = {name for name in own if name.partition('.')[0] not in self.trained_parts}
        differing = sorted(name for name in needed - state.keys() if not self.not_in_files(name))
        differing += sorted(name for name in state if name not in own and not self.not_in_files(name))
        differing += sorted(name for name in state if name in own and state[name].shape != own[name])
        if differing:
            fitting = prefix_in(self, whole)
            remedy = '' if fitting in (None, f'{prefix}.') else f'; it fits with {start_from(path, fitting)}'
            raise UserError(
                f"Checkpoint '{path}' is not of this {type(self).__name__}: it differs in {len(differing)} weights "
                f'({some(differing, 3)}){remedy}.'
            )
        self.load_state_dict(state, strict=False)

    def _fitted(self, state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
        """The weights of a file by the names, and in the shapes, of this backbone, as far as that can be done."""
        return state

    def not_in_files(self, name: str) -> bool:
        """Whether a weight is one that files may lack, or have for nothing."""
        return False

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        # Every loader comes by here, those of other libraries too.
        complete(self, state_dict, prefix, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _init_parts(self):
        """Last, for the backbone may have filled all that is in it. A file may have brought the reducer's weights."""
        if not self.pretrained_file:
            self.token_reducer.init_weights()
        if self.peft is not None:
            self.peft.init_weights()
