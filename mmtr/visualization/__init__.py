from .picture import fitted, group_legend, marked, seen_image, token_picture
from .token_map import (
    TokenMap,
    captioned,
    draw_groups,
    draw_injected,
    draw_matches,
    mosaic,
    record_token_maps,
    token_maps,
)

__all__ = [
    'TokenMap',
    'captioned',
    'draw_groups',
    'draw_injected',
    'draw_matches',
    'fitted',
    'group_legend',
    'marked',
    'mosaic',
    'record_token_maps',
    'seen_image',
    'token_maps',
    'token_picture',
]
