"""An EncoderDecoder with feature distillation: its backbone is trained to keep close to a teacher's features."""

from typing import Optional

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmtr.declared import Declared
from mmtr.errors import UserError
from mmtr.registry import MODELS
from mmtr.settings import Flag, Kind, Number, Whole
from mmtr.weights.fit import PretrainedWatch

from .encoder_decoder import EncoderDecoder


class Distillation(Declared, BaseModule):
    """Distillation loss between the patch features of a student and of a frozen teacher, each after its own MLP.

    The teacher is no submodule: it is in no state dict, optimizer or data-parallel wrapper, and always in eval mode.

    Args:
        student: Backbone that is trained.
        teacher: Config of a backbone with the same patch size; training needs its pretrained file.
        channels: Number of channels of the hidden layer and of the output in both MLPs.
        loss_weight: Weight of the loss mean(1 - cosine similarity).
        stop_gradient: Whether the teacher's MLP is frozen. If both MLPs are trained, as in the released code, they
            may collapse to a constant output.

    Raises:
        UserError: A setting has a value that is not allowed; when weights are initialised: the teacher has no
            pretrained file.
    """

    setting_prefix = 'distillation.'

    def __init__(
        self,
        student: nn.Module,
        teacher: Kind(dict, noun="dict(type='...', ...) of a backbone"),
        channels: Whole(1, 2**14) = 768,
        loss_weight: Number(above=0) = 0.1,
        stop_gradient: Flag() = True,
    ):
        super().__init__()
        self.loss_weight, self.stop_gradient = loss_weight, stop_gradient
        built = MODELS.build(teacher)
        if not hasattr(built, 'shape'):
            raise UserError(f'distillation.teacher.type={teacher["type"]!r} must be a backbone of mmtr.')
        if built.patch_size != student.patch_size:
            raise UserError(
                f'distillation.teacher.patch_size={built.patch_size}, but the patches of the student are '
                f'{student.patch_size} pixels: they must be the same.'
            )
        if built.token_reducer.restore_at == 'after_head':
            raise UserError(
                "distillation.teacher.token_reduction.restore_at='after_head' leaves no features of "
                "patches to learn from: set restore_at='before_norm'."
            )
        built.requires_grad_(False)
        self._teacher = (built.eval(),)
        self.student_mlp, self.teacher_mlp = (
            nn.Sequential(nn.Linear(backbone.shape.embed_dims, channels), nn.ReLU(), nn.Linear(channels, channels))
            for backbone in (student, built)
        )
        self.teacher_mlp.requires_grad_(not stop_gradient)

    @property
    def teacher(self) -> nn.Module:
        """The frozen backbone."""
        return self._teacher[0]

    def init_weights(self) -> None:
        """Load the teacher; raise a ``UserError`` if it has no pretrained file, or the file lacks weights."""
        if self.teacher.pretrained_file is None:
            raise UserError(
                'The teacher of model.distillation has random weights: set model.backbone.pretrained, or '
                'that of model.distillation.teacher if it has its own.'
            )
        watch = PretrainedWatch(self.teacher, 'model.distillation.teacher')
        self.teacher.init_weights()
        watch.close()

    def forward(self, images: Tensor, features: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            images: (B, channels, height, width) normalised images.
            features: (B, C, H, W) features of the student for them.
        """
        with torch.no_grad():
            target = self.teacher(images)[-1]
        student, teacher = (
            mlp(maps.flatten(2).transpose(1, 2))
            for mlp, maps in ((self.student_mlp, features), (self.teacher_mlp, target))
        )
        similarity = F.cosine_similarity(student.float(), teacher.float(), dim=-1, eps=1e-6)
        return self.loss_weight * (1 - similarity).mean()

    def _apply(self, *args, **kwargs):
        # The teacher is no submodule, so it must be moved to a device or dtype here.
        self.teacher._apply(*args, **kwargs)
        return super()._apply(*args, **kwargs)


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
        outputs = []
        hook = self.backbone.register_forward_hook(lambda module, args, out: outputs.append(out[-1]))
        try:
            losses = super().loss(inputs, data_samples)
        finally:
            hook.remove()
        return {**losses, 'loss_distill': self.distillation(inputs, outputs[0])}
