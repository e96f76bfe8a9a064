import json
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
version = {}
exec((ROOT / 'mmtr/version.py').read_text(), version)


class BuildWithConfigs(build_py):
    """Adds configs, tools and an index of the configs, where OpenMMLab's ``mim`` looks for them: in ``mmtr/.mim``.

    An editable install has no copies of its own: ``mmtr.config.files`` finds what is in the checkout.
    """

    def run(self) -> None:
        """Build the package, then copy the files; see ``setuptools.Command``."""
        super().run()
        if getattr(self, 'editable_mode', False):
            return
        mim = Path(self.build_lib, 'mmtr/.mim')
        shutil.rmtree(mim, ignore_errors=True)  # pip leaves files of earlier builds in build/
        for folder in ('configs', 'tools'):
            shutil.copytree(ROOT / folder, mim / folder, ignore=shutil.ignore_patterns('__pycache__'))
        shutil.copy(ROOT / 'model-index.yml', mim)
        names = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))
        index = dict(
            Collections=[dict(Name=model) for model in sorted({name.split('_')[0] for name in names})],
            Models=[
                {'Name': name, 'In Collection': name.split('_')[0], 'Config': f'configs/{name}.py'} for name in names
            ],
        )
        (mim / 'configs/metafile.yml').write_text(json.dumps(index, indent=1) + '\n')  # JSON is valid YAML


setup(
    name='mmtr',
    version=version['__version__'],
    description='Token reduction for vision transformers in OpenMMLab models, by one config key',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The mmtr contributors',
    license='Apache-2.0',
    keywords=['computer vision', 'semantic segmentation', 'object detection', 'vision transformer', 'token reduction'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Developers',
        'Intended Audience :: Science/Research',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Topic :: Scientific/Engineering :: Image Recognition',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['mmtr', 'mmtr.*']),
    package_data={'mmtr': ['py.typed']},
    cmdclass={'build_py': BuildWithConfigs},
    python_requires='>=3.9',
    # mmcv, mmengine, mmseg and mmdet are left out on purpose: two stacks provide them under the
    # same import names (see requirements/), and pip would build mmcv without its operators.
    install_requires=['torch>=2.1', 'fvcore', 'safetensors', 'tqdm'],
    # torchvision is left out of cls for the same reason: any but the one for the torch that is there would replace it.
    extras_require={
        'cls': ['mmpretrain==1.2.0'],
        'onnx': ['onnx', 'onnxscript', 'onnxruntime'],
        'tune': ['optuna>=5'],
        'xformers': ['xformers'],
    },
)
