"""Methods written out token by token, for one image: Token Adapter, Sec. 3.2; matching as ToMe's code does it."""

import torch
import torch.nn.functional as F


def ranked(values):
    """Positions by rising value, equal values by position."""
    return sorted(range(len(values)), key=lambda n: (values[n], n))


def likeness(a, b, metric):
    if metric == 'cosine':
        return F.cosine_similarity(a, b, dim=0).item()
    if metric == 'dot':
        return (a * b).sum().item()
    return -(a - b).norm(p=2 if metric == 'euclidean' else 1).item()


def line_scores(x, score):
    """Importance of every row and column of x (H, W, C)."""
    reduce = dict(max=lambda v: max(v), sum=lambda v: sum(v), range=lambda v: max(v) - min(v))[score]
    height, width = x.shape[:2]
    token = [[reduce(x[h, w].tolist()) for w in range(width)] for h in range(height)]
    rows = [reduce(token[h]) for h in range(height)]
    columns = [reduce([token[h][w] for h in range(height)]) for w in range(width)]
    return rows, columns


def groups_of(rows, columns, normal, unique):
    """Lists of raster positions: normal, representative, unique tokens, and all kept ones."""
    width = len(columns)
    kind = []
    for values, n, u in ((rows, normal[0], unique[0]), (columns, normal[1], unique[1])):
        order = ranked(values)
        kind.append(
            [
                'normal' if p in order[:n] else 'unique' if p in order[len(order) - u :] else 'plain'
                for p in range(len(values))
            ]
        )
    groups = dict(normal=[], representative=[], unique=[], kept=[])
    for h, row in enumerate(kind[0]):
        for w, column in enumerate(kind[1]):
            both = {row, column}
            group = 'normal' if 'normal' in both else 'unique' if 'unique' in both else 'representative'
            groups[group].append(h * width + w)
            if group != 'normal':
                groups['kept'].append(h * width + w)
    return groups


def inject_one(x, groups, metric, merge, grid, reduced):
    """x (N, C) -> reduced tokens (M, C)."""
    if merge in ('max_pool', 'avg_pool', 'bilinear'):
        image = x.T.reshape(1, -1, *grid)
        if merge == 'bilinear':
            image = F.interpolate(image, reduced, mode='bilinear', align_corners=False)
        else:
            image = getattr(F, f'adaptive_{merge[:3]}_pool2d')(image, reduced)
        return image.flatten(2)[0].T
    matched = {p: [x[p]] for p in groups['kept']}
    if merge == 'average':
        for n in groups['normal']:
            best = max(groups['representative'], key=lambda p: (likeness(x[n], x[p], metric), -p))
            matched[best].append(x[n])
    return torch.stack([torch.stack(matched[p]).mean(0) for p in groups['kept']])


def eject_one(x, merged, refined, groups, metric, reference, tau):
    """Every original token from the refined ones it is assigned to: (N, C)."""
    pool = list(range(len(groups['kept'])))
    if reference.startswith('representative'):
        pool = [j for j in pool if groups['kept'][j] in groups['representative']]
    compared = merged if reference.endswith('merged') else torch.stack([x[p] for p in groups['kept']])
    restored = []
    for token in x:
        alike = {j: likeness(token, compared[j], metric) for j in pool}
        chosen = {max(pool, key=lambda j: (alike[j], -j))}
        if tau is not None:
            chosen |= {j for j in pool if alike[j] >= tau}
        restored.append(torch.stack([refined[j] for j in sorted(chosen)]).mean(0))
    return torch.stack(restored)


def bipartite_slowly(metric, num_prefix, how_many):
    """Which places of a whole sequence (N, D), prefix first, each token that is left came from: a list of lists.

    Places 0, 2, 4, ... may join their most similar one of 1, 3, 5, ...; a prefix token takes part in neither role.

    Args:
        how_many: Function from the similarities of all that may join to how many of them do.
    """
    even = [n for n in range(0, len(metric), 2) if n >= num_prefix]
    odd = [n for n in range(1, len(metric), 2) if n >= num_prefix]
    alike, partner = {}, {}
    for a in even if odd else ():
        alike[a], partner[a] = max((likeness(metric[a], metric[b], 'cosine'), b) for b in odd)
    ranked = sorted(partner, key=lambda a: -alike[a])
    joining = ranked[: how_many([alike[a] for a in ranked])]
    staying = [a for a in ranked if a not in joining] if odd else even
    if num_prefix:
        staying.sort()
    into = [[b, *(a for a in joining if partner[a] == b)] for b in odd]
    return [[n] for n in range(num_prefix)] + [[a] for a in staying] + into
