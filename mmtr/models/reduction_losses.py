"""Adding the auxiliary losses of token reducers to those of a segmentor or detector."""

from torch import Tensor

from mmtr.errors import UserError
from mmtr.reducers import TokenReducer
from mmtr.reducers.auxiliary import auxiliary_outputs


class ReductionLosses:
    """Mixin for a stock segmentor, detector or classifier that adds the losses of its token reducers to ``loss``.

    The losses of the backbone's reducer have names such as ``reducer.layer_03.loss_ce``.

    Raises:
        UserError: See ``check_reduction``.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._leave_layers()
        self.check_reduction()

    def _leave_layers(self):
        """Leave the last layers of the backbone to a head whose queries run in them."""
        head = self._head()
        count = getattr(head, 'num_query_layers', None)
        if count is None:
            return
        leave = getattr(self.backbone, 'leave_layers', None)
        if leave is None or getattr(self, 'neck', None) is not None:
            raise UserError(
                f'{type(head).__name__} runs the last layers of the backbone itself, so the backbone must be a plain '
                f'ViT of mmtr, such as mmtr.DINOv2, and not a {type(self.backbone).__name__}, and there is no neck.'
            )
        leave(count, head.reduce_with_queries)
        width, channels = head.query.weight.shape[1], self.backbone.shape.embed_dims
        if width != channels:
            raise UserError(
                f'{head.setting_prefix}in_channels={width} must be {channels}, the channels of the backbone.'
            )

    def check_reduction(self) -> None:
        """Check that the current token reducers fit the model.

        Raises:
            UserError: A reducer has another number of classes than the model, or restores tokens after the head and
                the model cannot do that.
        """
        for reducer in self._reducers().values():
            found, expected = getattr(reducer, 'num_classes', None), self._num_classes()
            if None not in (found, expected) and found != expected:
                raise UserError(
                    f'token_reduction.num_classes={found}, but the model has {expected} classes: '
                    f'set num_classes={expected}.'
                )

        if self._restores_late():
            self._check_restoring()

    def _check_restoring(self):
        """Raise a ``UserError`` if the model cannot restore logits after the head."""
        raise UserError(
            f"token_reduction.restore_at='after_head' gives back the logits of a segmentor, and a "
            f"{type(self).__name__} needs the full grid of patches: set restore_at='before_norm'."
        )

    def _restores_late(self):
        return any(reducer.restores_late for reducer in self._reducers().values())

    def _num_classes(self):
        """That a reducer must have; None: any."""
        raise NotImplementedError

    def _reducers(self):
        return {name: module for name, module in self.named_modules() if isinstance(module, TokenReducer)}

    def _head(self):
        """The one whose loss those of a reducer resemble, or None."""
        head = getattr(self, 'decode_head', None)
        return head[-1] if hasattr(head, '__getitem__') else head  # a cascade

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Compute the losses of the stock class, and those of the token reducers."""
        with auxiliary_outputs() as outputs:
            losses = super().loss(inputs, data_samples)
        return {**losses, **self.losses_of_reducers(outputs, data_samples)}

    def losses_of_reducers(self, outputs: dict, data_samples: list) -> dict[str, Tensor]:
        """Compute the losses of the token reducers.

        Args:
            outputs: What ``auxiliary_outputs`` collected in the forward pass.
            data_samples: Data samples of the batch.
        """
        losses = {}
        for path, reducer in self._reducers().items():
            if hasattr(reducer, 'task'):
                reducer.task.follow(self._head())
            owner = path.replace('token_reducer', 'reducer').removeprefix('backbone.')
            for name, loss in reducer.losses(outputs.get(reducer, {}), data_samples).items():
                losses[f'{owner}.{name}'] = loss
        return losses
