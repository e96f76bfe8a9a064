"""Registries of mmtr, children of mmengine's with the scope ``mmtr``: write ``type='mmtr.Name'`` in a config."""

from importlib import import_module
from typing import Optional

from mmengine import registry as root
from mmengine.registry import Registry

from mmtr.optional import import_mmpretrain

#: Models on mmpretrain, which need not be installed, and the modules that register them.
ON_MMPRETRAIN = dict(
    {
        name: 'mmtr.models.backbones.mmpretrain.backbone'
        for name in ('ClsVisionTransformer', 'DeiT3', 'DistilledVisionTransformer')
    },
    BEiTViT='mmtr.models.backbones.mmpretrain.beit',
    ViTEVA02='mmtr.models.backbones.mmpretrain.eva02',
    ViTSAM='mmtr.models.backbones.mmpretrain.sam',
    SwinTransformerV2='mmtr.models.backbones.mmpretrain.swin_v2',
    ImageClassifier='mmtr.models.classifiers.image_classifier',
)
#: Models on mmdet, which is imported no earlier than needed.
ON_MMDET = dict(
    PyramidVisionTransformer='mmtr.models.backbones.pyramid.pvt',
    PyramidVisionTransformerV2='mmtr.models.backbones.pyramid.pvt',
    EoMT='mmtr.models.eomt.detector',
    EoMTFusionHead='mmtr.models.eomt.detector',
    EoMTHead='mmtr.models.eomt.heads',
    EoMTSegHead='mmtr.models.eomt.heads',
)


class LateRegistry(Registry):
    """A registry that imports the module of a name, and what that needs, when it is asked for it.

    Args:
        late: Name to module.
        args, kwargs: mmengine's.
    """

    def __init__(self, *args, late: dict[str, str], **kwargs):
        super().__init__(*args, **kwargs)
        self.late = late

    def get(self, key: str) -> Optional[type]:
        """Find a class, as mmengine's; raise a ``UserError`` if it needs mmpretrain and that is not there."""
        scope, name = self.split_scope_key(key)
        if name in self.late and scope in (None, self.scope):
            if name in ON_MMPRETRAIN:
                import_mmpretrain(f'{self.scope}.{name}')
            import_module(self.late[name])
        return super().get(key)


MODELS = LateRegistry(
    'model', scope='mmtr', parent=root.MODELS, locations=['mmtr.models'], late={**ON_MMPRETRAIN, **ON_MMDET}
)
HOOKS = Registry('hook', scope='mmtr', parent=root.HOOKS, locations=['mmtr.engine.hooks'])
OPTIM_WRAPPERS = Registry('optim_wrapper', scope='mmtr', parent=root.OPTIM_WRAPPERS, locations=['mmtr.engine'])
OPTIM_WRAPPER_CONSTRUCTORS = Registry(
    'optim_wrapper_constructor', scope='mmtr', parent=root.OPTIM_WRAPPER_CONSTRUCTORS, locations=['mmtr.engine']
)
PARAM_SCHEDULERS = Registry(
    'parameter scheduler', scope='mmtr', parent=root.PARAM_SCHEDULERS, locations=['mmtr.engine']
)
DATASETS = Registry('dataset', scope='mmtr', parent=root.DATASETS, locations=['mmtr.datasets'])
TRANSFORMS = LateRegistry(
    'transform',
    scope='mmtr',
    parent=root.TRANSFORMS,
    locations=['mmtr.datasets'],
    late=dict(AntialiasedResize='mmtr.datasets.resize'),
)
METRICS = Registry('metric', scope='mmtr', parent=root.METRICS, locations=['mmtr.evaluation'])

# These have no counterpart in mmengine, so their registries have no parent.
TOKEN_REDUCERS = Registry('token reducer', scope='mmtr', locations=['mmtr.reducers'])
PEFTS = Registry('peft', scope='mmtr', locations=['mmtr.peft'])
