from .adapter import Adapter
from .base import PEFT, build_peft
from .dar import DAR
from .lora import LoRA

__all__ = ['Adapter', 'DAR', 'LoRA', 'PEFT', 'build_peft']
