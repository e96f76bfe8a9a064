import torch

from mmtr.ops.bipartite import adaptive_matching, threshold_matching


def test_padding_is_never_matched():
    # Token 2 equals the padding at 3 and resembles token 1.
    metric = torch.tensor([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.5], [1.0, 0.5]]])
    everything, padded = torch.tensor([[[True] * 4], [[True, True, True, False]]])
    assert threshold_matching(metric, 0.8, everything).tolist() == [[0, 1, 3, 3]]
    assert threshold_matching(metric, 0.8, padded).tolist() == [[0, 1, 1, 3]]
    assert threshold_matching(metric, 0.95, padded).tolist() == [[0, 1, 2, 3]]


def test_the_adaptive_threshold_is_of_valid_tokens_alone():
    # With a class token, patches 1 and 3 may merge; their largest similarities are 0.8 and 0.6.
    metric = torch.tensor([[[1.0, 0.0, 0.0], [0.8, 0.6, 0.0], [0.0, 0.0, 1.0], [0.0, 0.8, 0.6]]])
    valid = torch.ones(1, 4, dtype=torch.bool)
    # Mean 0.7, standard deviation 0.141: the threshold is 0.841 in layer 1, 0.747 in layer 3.
    assert adaptive_matching(metric, 1, valid, 1).tolist() == [[0, 1, 2, 3]]
    assert adaptive_matching(metric, 3, valid, 1).tolist() == [[0, 0, 2, 3]]
    padded, valid = torch.cat([metric, torch.ones(1, 3, 3)], 1), torch.tensor([[True] * 4 + [False] * 3])
    for layer in (1, 3):
        expected = adaptive_matching(metric, layer, valid[:, :4], 1)
        assert torch.equal(adaptive_matching(padded, layer, valid, 1)[:, :4], expected)
    # One token that could merge has no standard deviation.
    assert adaptive_matching(metric[:, :3], 9, valid[:, :3], 1).tolist() == [[0, 1, 2]]
