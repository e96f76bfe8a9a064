from .binary import BinaryMetric

__all__ = ['BinaryMetric']
