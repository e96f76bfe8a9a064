"""The base class of all backbones: the keys ``token_reduction`` and ``peft``, and loading of pretrained weights."""

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
    """Mixin for a backbone with a token reducer and a PEFT.

    A subclass implements ``all_layers`` (of ``ReducibleLayer``), ``shape`` and ``build_reducer``, and calls
    ``make_tunable`` at the end of ``__init__``; an ``init_weights`` of its own ends with ``_init_parts``. It may
    override ``_fitted``, which converts the weights of a file, and ``not_in_files``, which allows weights to differ.
    """

    inherited = STOCK
    #: Names of the children that are trained with a ``peft``; all others are frozen.
    trained_parts: tuple[str, ...] = ('peft', 'token_reducer')
    #: The config of the reducer, see ``set_token_reduction``.
    token_reduction: Optional[dict] = None
    #: Whether the weights that a ``peft`` freezes were loaded; until then they are random.
    has_frozen_weights = False
    #: Whether a pretrained file must always hold all weights, and is not loaded by the stock class.
    loads_whole_files = False

    @property
    def all_layers(self) -> list[nn.Module]:
        """All layers, in the order that ``peft`` counts them in."""
        return list(self.layers)

    @property
    def shape(self) -> BackboneInfo:
        """Layers, channels and prefix tokens of the backbone, for its PEFT."""
        raise NotImplementedError

    def make_tunable(
        self, attn_backend: str, token_reduction: Optional[dict] = None, peft: Optional[dict] = None
    ) -> None:
        """Replace stock layers by their twins, and set reducer and PEFT; the last step of ``__init__``.

        Args:
            attn_backend: One of ``mmtr.ops.attention.BACKENDS``.
            token_reduction: ``dict(type=..., **settings)`` of a token reducer; None: no reduction.
            peft: ``dict(type=..., **settings)`` of a fine-tuning method; None: all is trained.

        Raises:
            UserError: The backend cannot run here; a type or setting does not exist or is not allowed.
        """
        check_backend(attn_backend)
        self._make_reducible(attn_backend)
        self.set_token_reduction(token_reduction)
        self.set_peft(peft)

    def _make_reducible(self, attn_backend):
        """Replace stock layers by their twins."""

    def set_token_reduction(self, token_reduction: Optional[dict]) -> None:
        """Set the reducer, from ``dict(type=..., **settings)`` or None, and log what it does."""
        reducer = self.build_reducer(token_reduction)
        if getattr(self, 'peft', None) is not None:
            self.peft.check_reducer(reducer)
        # The backbone may be in eval mode and on a device already.
        if not self.training:
            reducer.eval()
        self.token_reducer = reducer.to(next(self.parameters()).device)
        self.token_reduction = token_reduction
        if token_reduction is not None:
            print_log(in_words(reducer), 'current')
        if reducer.caution:
            print_log(reducer.caution, 'current', logging.WARNING)

    def set_peft(self, peft: Optional[dict]) -> None:
        """Set the fine-tuning method, once, after the reducer, and freeze all children but ``trained_parts``.

        Args:
            peft: ``dict(type=..., **settings)``; None: all is trained.
        """
        self.peft, self.has_frozen_weights = None, False
        if peft is not None:
            built = build_peft(peft, self.shape)
            built.check_reducer(self.token_reducer)
            built.attach(self.all_layers)
            self.peft = built
            freeze(self)

    def tune(self, peft: dict) -> None:
        """Set the fine-tuning method of a backbone whose weights are loaded already; these are frozen."""
        self.set_peft(peft)
        like = next(self.parameters())
        self.peft.init_weights()
        self.peft.to(like.device, like.dtype).train(self.training)
        self.has_frozen_weights = self.is_init = True  # mmengine initialises modules without is_init

    def train(self, mode: bool = True) -> 'TunableBackbone':
        """Set training mode, as torch; frozen modules stay in eval mode, without dropout and drop path."""
        super().train(mode)
        if self.peft is not None:
            for module in frozen_modules(self):
                module.eval()
        return self

    def init_weights(self) -> None:
        """Initialise the weights as the stock class, and load the pretrained file.

        With ``peft`` or ``init_cfg.prefix``, or where a host ``loads_whole_files``, the file must hold all weights of
        the backbone; the stock class loads those that it finds, and ignores the prefix.
        """
        whole = self.loads_whole_files or self.peft is not None
        if self.pretrained_file and (whole or self.init_cfg.get('prefix')):
            self.load_pretrained()
        else:
            super().init_weights()
        self._init_parts()

    @property
    def pretrained_file(self) -> Optional[str]:
        """The path of the checkpoint that ``init_weights`` loads; None: weights are initialised at random."""
        cfg = self.init_cfg
        pretrained = isinstance(cfg, dict) and cfg.get('type') in ('Pretrained', PretrainedInit)
        return cfg.get('checkpoint') if pretrained else None

    def load_pretrained(self) -> None:
        """Load the ``pretrained_file``: read, unwrap, strip the prefix, convert and resize, compare, load.

        ``init_cfg.prefix``, as in mmengine, is the prefix of the backbone's weights in the file of a whole model.

        Raises:
            UserError: The file cannot be read, lacks weights of the backbone, or has others.
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
            fitting, given = prefix_in(self, whole), f'{prefix}.' if prefix else ''
            remedy = '' if fitting in (None, given) else f'; it fits with {start_from(path, fitting)}'
            raise UserError(
                f"Checkpoint '{path}' is not of this {type(self).__name__}: it differs in {len(differing)} weights "
                f'({some(differing, 3)}){remedy}.'
            )
        self.load_state_dict(state, strict=False)

    def _fitted(self, state: dict[str, Tensor], path: str) -> dict[str, Tensor]:
        """Convert the weights of a file to the names and shapes of this backbone, as far as possible."""
        return state

    def not_in_files(self, name: str) -> bool:
        """Say whether a file may lack the weight ``name``, or have it although the backbone does not."""
        return False

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        # Every loader calls this method, those of other libraries too.
        complete(self, state_dict, prefix, local_metadata)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)

    def _init_parts(self):
        """Initialise reducer and PEFT, after the backbone; a pretrained file may have the weights of the reducer."""
        if not self.pretrained_file:
            self.token_reducer.init_weights()
        if self.peft is not None:
            self.peft.init_weights()
