"""mmpretrain's classifier; importing this imports mmpretrain, so the registry does when a config names it."""

from .image_classifier import ImageClassifier

__all__ = ['ImageClassifier']
