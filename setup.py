from pathlib import Path

from setuptools import find_packages, setup

version = {}
exec(Path(__file__).with_name('mmtr').joinpath('version.py').read_text(), version)

setup(
    name='mmtr',
    version=version['__version__'],
    description='Token reduction for vision transformers in OpenMMLab models, by one config key',
    long_description=Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    packages=find_packages(include=['mmtr', 'mmtr.*']),
    python_requires='>=3.9',
    # mmcv, mmengine, mmseg and mmdet are left out on purpose: two stacks provide them under the
    # same import names (see requirements/), and pip would build mmcv without its operators.
    install_requires=['torch>=2.1', 'fvcore', 'safetensors', 'tqdm'],
    extras_require={'onnx': ['onnx', 'onnxscript', 'onnxruntime'], 'tune': ['optuna>=5'], 'xformers': ['xformers']},
)
