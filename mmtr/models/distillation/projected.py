"""The distillation of DAR: a backbone is trained to keep close to the features of a teacher, each after an MLP."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmtr.declared import Declared
from mmtr.errors import UserError
from mmtr.registry import MODELS
from mmtr.settings import Flag, Kind, Number, Whole
from mmtr.weights.fit import PretrainedWatch

from .taught import Taught


class Distillation(Declared, Taught):
    """Distillation loss between the patch features of a student and of a frozen teacher, each after its own MLP.

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
        super().__init__(built)
        self.loss_weight, self.stop_gradient = loss_weight, stop_gradient
        self.student_mlp, self.teacher_mlp = (
            nn.Sequential(nn.Linear(backbone.shape.embed_dims, channels), nn.ReLU(), nn.Linear(channels, channels))
            for backbone in (student, built)
        )
        self.teacher_mlp.requires_grad_(not stop_gradient)

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
