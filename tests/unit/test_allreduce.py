from hypothesis import given
from hypothesis import strategies as st

from cos_ml.allreduce import GROUP, groups


def test_a_small_network_sends_one_message():
    assert groups({0: 400_000, 1: 512, 2: 5120, 3: 40, 4: 4}) == [[0, 1, 2, 3, 4]]
    assert groups({}) == []


def test_the_last_layers_go_first():
    """A LeNet: the large dense layer's while the convolutions' are computed."""
    sizes = {0: 1152, 1: 128, 2: 73_728, 3: 256, 4: 2_359_296, 5: 256, 6: 2560, 7: 40, 8: 4}
    assert groups(sizes) == [[4, 5, 6, 7, 8], [0, 1, 2, 3]]


@given(st.lists(st.integers(1, 2 * GROUP), max_size=20))
def test_every_gradient_is_in_one_group(sizes):
    found = groups(dict(enumerate(sizes)))
    assert sorted(index for group in found for index in group) == list(range(len(sizes)))
    assert all(sum(sizes[index] for index in group) >= GROUP for group in found[:-1])
    assert all(group == list(range(group[0], group[-1] + 1)) for group in found)
    assert [group[-1] for group in found] == sorted((group[-1] for group in found), reverse=True)
