from .binary import BinaryDataset, LoadBinaryAnnotations

__all__ = ['BinaryDataset', 'LoadBinaryAnnotations']
