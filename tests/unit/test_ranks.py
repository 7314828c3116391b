import pytest

from cos_ml import ranks

ECHO = {"error": b"Traceback ...: Horovod has been shut down. This was caused by an exception on one of the ranks."}


@pytest.mark.parametrize(
    ("results", "lost"),
    [
        ([ECHO, ECHO], True),
        ([ECHO, {"0/summary": b"{}"}], True),  # the other one had just come to its end
        ([ECHO, {"error": b"ValueError: this layer broke"}], False),
        ([ECHO, {"problem": b"column 'label', row 3: is null"}], False),
        ([ECHO, {"failure": b"The loss is NaN"}], False),
        ([{"cluster": b"other versions"}, {}], False),
        ([{}, {}], False),
    ],
)
def test_ranks_that_only_lost_each_other_have_no_reason_of_their_own(results, lost):
    assert ranks._lost_each_other(results) == lost
