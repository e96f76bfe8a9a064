"""The model that a config describes."""

import copy

from mmengine.config import Config


def model_of(cfg: Config) -> dict:
    """Return the model of a config as a runner builds it: with the top-level ``data_preprocessor``, if it has none.

    Without that nothing would be normalised.

    Args:
        cfg: Config; one without a model gives {}.
    """
    model, preprocessor = cfg.get('model') or {}, cfg.get('data_preprocessor')
    if preprocessor is None or 'data_preprocessor' in model:
        return model
    return type(model)({**model, 'data_preprocessor': copy.deepcopy(preprocessor)})
