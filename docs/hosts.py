"""Writes hosts.md: which packaged configs take a reduction, by which methods, and why others do not.

``python docs/hosts.py`` reads all configs of mmseg, mmdet and mmpretrain; rows of a library that is absent stay.
"""

import contextlib
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from mmengine.config import Config

from mmtr.models.backbones.common.stages import StagedBackbone
from mmtr.models.backbones.common.twins import own_backbone
from mmtr.registry import TOKEN_REDUCERS

PAGE = Path(__file__).with_suffix('.md')
LIBRARIES = ('mmseg', 'mmdet', 'mmpretrain')
KEYS = ('backbone', 'image_encoder')
HEAD = '| backbone | configs | folders | token reduction |\n|---|---:|---|---|\n'
PRETRAINING = 'no: for pretraining, it drops or replaces patches itself; reduce the model that is fine-tuned from it'
OWN_STAGES = 'no: stages with a layer of their own kind, for which there is no host yet'
#: Transformers without a host: why.
WITHOUT = dict(
    dict.fromkeys(
        (
            *('BEiTPretrainViT', 'CAEPretrainViT', 'MAEHiViT', 'MAEViT', 'MFFViT', 'MILANViT', 'MaskFeatViT'),
            *('MixMIMPretrainTransformer', 'MoCoV3ViT', 'SimMIMSwinTransformer', 'iTPNHiViT'),
        ),
        PRETRAINING,
    ),
    **dict.fromkeys(
        (
            *('Conformer', 'DaViT', 'EdgeNeXt', 'EfficientFormer', 'HiViT', 'LeViT', 'MViT', 'MixMIMTransformer'),
            *('MobileViT', 'TinyViT'),
        ),
        OWN_STAGES,
    ),
    LoRAModel="no: a wrapper around a ViT; use `peft=dict(type='LoRA')` of mmtr",
    RevVisionTransformer='no: reversible layers compute two streams',
    SwinTransformer="no: another class than mmseg's; it does not shift a window that is as large as the map",
    PCPVT="no: another class than mmseg's",
    SVT="no: another class than mmseg's",
    T2T_ViT='no: no host yet for its tokens-to-token stages',
    TNT='no: a second transformer within each patch',
    XCiT='no: attends to channels, not to tokens',
)
#: Backbones that are no transformers.
OTHERS = frozenset(
    """BiSeNetV1 BiSeNetV2 CGNet CSPDarkNet CSPDarknet CSPNeXt CSPResNeXt CSPResNet ConvMixer ConvNeXt DDRNet Darknet
    DenseNet DetectoRS_ResNet ERFNet EfficientNet EfficientNetV2 FastSCNN HRNet HorNet HourglassNet ICNet InceptionV3
    LeNet5 MSCAN MlpMixer MobileNetV2 MobileNetV3 MobileOne PIDNet PoolFormer PyramidVig RIFormer RegNet RepLKNet
    RepMLPNet RepVGG Res2Net ResNeSt ResNeXt ResNet ResNetV1c ResNetV1d ResNet_CIFAR SEResNeXt SEResNet SSDVGG
    STDCContextPathNet ShuffleNetV1 ShuffleNetV2 SparseConvNeXt SparseResNet TIMMBackbone TridentResNet UNet VAN VGG VPD
    Vig""".split()
)


def backbones(cfg: dict) -> Iterator[str]:
    """Yield the types of all backbones in the config of a model."""
    for key, value in (
        cfg.items() if isinstance(cfg, dict) else enumerate(cfg) if isinstance(cfg, (list, tuple)) else ()
    ):
        if key in KEYS and isinstance(value, dict) and 'type' in value:
            kind = value['type']
            yield kind if isinstance(kind, str) else kind.__name__
        yield from backbones(value)


def configs_of(library: str) -> dict[str, dict[str, list[Path]]]:
    """Return the packaged configs of a library: {backbone: {folder: paths}}."""
    root = Path(import_module(library).__file__).parent / '.mim/configs'
    found = defaultdict(lambda: defaultdict(list))
    for path in sorted(root.rglob('*.py')):
        if '_base_' in path.parts:
            continue
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                cfg = Config.fromfile(path, import_custom_modules=False)
        except (OSError, KeyError, ImportError):  # some packaged configs miss a base
            continue
        for kind in set(backbones(cfg.get('model', {}))):
            found[kind.rpartition('.')[2]][path.relative_to(root).parts[0]].append(path)
    return found


def what_works(library: str, kind: str) -> str:
    """Say which methods work in a stock backbone, or why none does; empty for what is no transformer."""
    stock = getattr(import_module(f'{library}.models.backbones'), kind, None)
    own = own_backbone(stock) if stock else None
    if own is not None:
        apart = 'SegFormerPlusPlus'
        without = [] if getattr(own, 'with_cls_token', True) else needing_class_token()
        without += [] if own.merges_apart else [apart]
        if issubclass(own, StagedBackbone):
            which = f'grid methods and {apart}' if own.merges_apart else 'grid methods'
        else:
            which = ' but '.join(['all methods', *[' and '.join(without)] * bool(without)])
        return f'{which}, as `mmtr.{own.__name__}`'
    if kind in OTHERS:
        return ''
    if kind not in WITHOUT:
        raise SystemExit(f'{kind} of {library} is new: say in docs/hosts.py what it is.')
    return WITHOUT[kind]


def needing_class_token() -> list[str]:
    """Return the names of the methods that read the class token."""
    TOKEN_REDUCERS.import_from_location()
    return [name for name, method in sorted(TOKEN_REDUCERS.module_dict.items()) if method.needs_class_token]


def table(library: str) -> str:
    """Return the section of a library."""
    rows = []
    for kind, folders in configs_of(library).items():
        works = what_works(library, kind)
        if works:
            count = sum(map(len, folders.values()))
            rows.append((works.startswith('no'), -count, f'| `{kind}` | {count} | {", ".join(folders)} | {works} |\n'))
    return HEAD + ''.join(row for *_, row in sorted(rows))


def written(text: str) -> str:
    """Return the text of the page, with the sections of installed libraries written anew."""
    TOKEN_REDUCERS.import_from_location()
    grid = ', '.join(f'`{name}`' for name, method in sorted(TOKEN_REDUCERS.module_dict.items()) if method.leaves_grid)
    text = re.sub(r'(?<=\*\*Grid methods\*\* are ).*?(?=\.\n)', grid, text)
    for library in LIBRARIES:
        if find_spec(library):
            start = text.index(HEAD, text.index(f'\n## {library}\n'))
            stop = text.find('\n\n', start)
            text = text[:start] + table(library).rstrip('\n') + (text[stop:] if stop >= 0 else '\n')
    return text


if __name__ == '__main__':
    PAGE.write_text(written(PAGE.read_text(encoding='utf-8')), encoding='utf-8')
