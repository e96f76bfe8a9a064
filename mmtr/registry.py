"""Registries of mmtr, children of mmengine's with the scope ``mmtr``: write ``type='mmtr.Name'`` in a config."""

from mmengine import registry as root
from mmengine.registry import Registry

MODELS = Registry('model', scope='mmtr', parent=root.MODELS, locations=['mmtr.models'])
HOOKS = Registry('hook', scope='mmtr', parent=root.HOOKS, locations=['mmtr.engine.hooks'])
OPTIM_WRAPPERS = Registry('optim_wrapper', scope='mmtr', parent=root.OPTIM_WRAPPERS, locations=['mmtr.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optim_wrapper_constructor', scope='mmtr', parent=root.OPTIM_WRAPPER_CONSTRUCTORS, locations=['mmtr.engine']
)
DATASETS = Registry('dataset', scope='mmtr', parent=root.DATASETS, locations=['mmtr.datasets'])
TRANSFORMS = Registry('transform', scope='mmtr', parent=root.TRANSFORMS, locations=['mmtr.datasets'])
METRICS = Registry('metric', scope='mmtr', parent=root.METRICS, locations=['mmtr.evaluation'])

# These have no counterpart in mmengine, so their registries have no parent.
TOKEN_REDUCERS = Registry('token reducer', scope='mmtr', locations=['mmtr.reducers'])
PEFTS = Registry('peft', scope='mmtr', locations=['mmtr.peft'])
