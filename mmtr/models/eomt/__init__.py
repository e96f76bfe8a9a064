"""EoMT (Kerssies et al., "Your ViT is Secretly an Image Segmentation Model", CVPR 2025) for mmdet and mmseg.

Its queries run in the last layers of a plain ViT. ``MODELS`` imports these modules when they are asked for: they are
built from parts of mmdet.
"""
