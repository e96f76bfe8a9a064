import torch

from mmtr.ops.bipartite import threshold_matching


def test_padding_is_never_matched():
    # Token 2 equals the padding at 3 and resembles token 1.
    metric = torch.tensor([[[0., 1.], [1., 0.], [1., 0.5], [1., 0.5]]])
    everything, padded = torch.tensor([[[True] * 4], [[True, True, True, False]]])
    assert threshold_matching(metric, 0.8, everything).tolist() == [[0, 1, 3, 3]]
    assert threshold_matching(metric, 0.8, padded).tolist() == [[0, 1, 1, 3]]
    assert threshold_matching(metric, 0.95, padded).tolist() == [[0, 1, 2, 3]]
