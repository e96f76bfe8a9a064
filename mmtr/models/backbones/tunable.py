"""The keys ``token_reduction`` and ``peft``, as every backbone has them."""
from typing import Optional

from torch import nn

from mmtr.peft import build_peft
from mmtr.peft.freezing import freeze, frozen_modules
from mmtr.reducers import BackboneShape
from mmtr.settings import Declared

from .keys import STOCK


class TunableBackbone(Declared):
    """Mixin of a backbone that reduces tokens and may be frozen beside a ``peft``.

    A subclass has ``all_layers`` of ``ReducibleLayer``, ``shape`` and ``build_reducer``. It sets its reducer, then
    its ``peft``, when it is built, and calls ``_init_peft`` at the end of ``init_weights``.
    """
    inherited = STOCK
    #: Children that a ``peft`` does not freeze.
    trained_parts: tuple[str, ...] = ('peft', 'token_reducer')

    @property
    def all_layers(self) -> list[nn.Module]:
        """The layers from the image on, as ``peft`` counts them."""
        return list(self.layers)

    @property
    def shape(self) -> BackboneShape:
        """What its PEFT is told of it."""
        raise NotImplementedError

    def set_token_reduction(self, token_reduction) -> None:
        """Use another reducer, ``dict(type=..., **settings)``, or None."""
        reducer = self.build_reducer(token_reduction)
        if getattr(self, 'peft', None) is not None:
            self.peft.check_reducer(reducer)
        self.token_reducer = reducer

    def set_peft(self, peft) -> None:
        """Train what ``dict(type=..., **settings)`` says, and freeze all but ``trained_parts``; None: train all.

        Once, when the backbone is built and has its reducer.
        """
        self.peft = None
        if peft is not None:
            self.peft = build_peft(peft, self.shape)
            self.peft.check_reducer(self.token_reducer)
            self.peft.attach(self.all_layers)
            freeze(self)

    def train(self, mode=True):
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
        return cfg.get('checkpoint') if isinstance(cfg, dict) and cfg.get('type') == 'Pretrained' else None

    def _init_peft(self):
        """Last, for the backbone may have filled all that is in it."""
        if self.peft is not None:
            self.peft.init_weights()
