from .simple_feature_pyramid import LN2d, SimpleFeaturePyramid

__all__ = ['LN2d', 'SimpleFeaturePyramid']
