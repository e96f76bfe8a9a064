from .distillation import DistillationEncoderDecoder
from .encoder_decoder import EncoderDecoder

__all__ = ['DistillationEncoderDecoder', 'EncoderDecoder']
