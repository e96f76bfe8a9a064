"""An EncoderDecoder with the distillation of DAR."""

from typing import Optional

from torch import Tensor

from mmtr.errors import UserError
from mmtr.models.distillation import Distillation, outputs_of
from mmtr.registry import MODELS

from .encoder_decoder import EncoderDecoder


@MODELS.register_module()
class DistillationEncoderDecoder(EncoderDecoder):
    """``EncoderDecoder`` with a further loss, ``loss_distill``, between the last outputs of its backbone and a teacher.

    Args:
        backbone: Config of the backbone.
        distillation: ``dict(teacher=..., **settings)`` of ``Distillation``; the default teacher is the backbone
            without ``peft`` and ``token_reduction``. None: no distillation, for deployment.
        args, kwargs: mmseg's.

    Raises:
        UserError: See ``Distillation``; or the backbone restores tokens after the head.
    """

    def __init__(self, backbone: dict, *args, distillation: Optional[dict] = None, **kwargs):
        super().__init__(backbone, *args, **kwargs)
        self.distillation = None
        if distillation is not None:
            plain = {key: value for key, value in backbone.items() if key not in ('peft', 'token_reduction')}
            self.distillation = Distillation(self.backbone, **{'teacher': plain, **distillation})
            self.check_reduction()

    def _check_restoring(self):
        super()._check_restoring()
        if getattr(self, 'distillation', None) is not None:
            raise UserError(
                "token_reduction.restore_at='after_head' leaves no features of patches for "
                "model.distillation: set restore_at='before_norm', or distillation=None."
            )

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Compute the losses of ``EncoderDecoder``, and the distillation loss."""
        if self.distillation is None:
            return super().loss(inputs, data_samples)
        with outputs_of(self.backbone) as outputs:
            losses = super().loss(inputs, data_samples)
        return {**losses, 'loss_distill': self.distillation(inputs, outputs[0][-1])}
