from .annealing import MaskAnnealingHook
from .checkpoint import CheckpointHook
from .coverage import CheckpointCoverageHook
from .curriculum import ReductionCurriculumHook
from .healing import HealingHook
from .labels import LabelCheckHook
from .peft import PEFTCheckpointHook
from .resume import ResumeCheckHook
from .seed import IterationSeedHook
from .token_map import TokenMapHook
from .token_reduction import TokenReductionHook

__all__ = [
    'CheckpointCoverageHook',
    'CheckpointHook',
    'HealingHook',
    'IterationSeedHook',
    'LabelCheckHook',
    'MaskAnnealingHook',
    'PEFTCheckpointHook',
    'ReductionCurriculumHook',
    'ResumeCheckHook',
    'TokenMapHook',
    'TokenReductionHook',
]
