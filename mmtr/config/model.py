"""The model that a config describes."""

import copy


def model_of(cfg) -> dict:
    """The model of a config, as a runner builds it: a top-level ``data_preprocessor`` is its, unless it has its own.

    Without it nothing would be normalised.

    Args:
        cfg: mmengine ``Config``; one without a model gives {}.
    """
    model, preprocessor = cfg.get('model') or {}, cfg.get('data_preprocessor')
    if preprocessor is None or 'data_preprocessor' in model:
        return model
    return type(model)({**model, 'data_preprocessor': copy.deepcopy(preprocessor)})
