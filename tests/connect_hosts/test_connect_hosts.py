"""A client of Spark Connect on a host of its own: without Java, without Horovod, and without the server's files."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from tests.connect_hosts.conftest import report
from tests.support import reference
from tests.support.sessions import ROOT

ROWS, EPOCHS = 60, 2  # as in program.py


@pytest.fixture(scope="module")
def fit(site):
    return site.run("fit", str(site.folder))[0]


@pytest.fixture(scope="module")
def expected():
    network = reference.network()
    optimizer = keras.optimizers.SGD(0.1, momentum=0.9)
    reference.train(network, [reference.data(ROWS)], ROWS, EPOCHS, optimizer)
    return network


def weights(network):
    return np.concatenate([np.ravel(one) for one in network.get_weights()])


def last_epoch(shown):
    return f"epoch {EPOCHS}/{EPOCHS} - " in shown


def test_the_client_is_a_host_of_its_own(site):
    found, _ = site.run("here", str(site.folder), str(ROOT / "cos_ml"))
    assert found == {"hidden": [], "java": None, "modules": []}


def test_two_ranks_on_two_hosts_are_the_loop_by_hand(site, fit, expected):
    assert (fit["ranks"], fit["hosts"], fit["rows"]) == ([0, 1], 2, ROWS)
    np.testing.assert_allclose(fit["weights"], weights(expected), atol=1e-5)
    assert fit["resumed"] == [EPOCHS, 0]  # by the checkpoints on the workers' disk
    assert list((site.folder / "cache").iterdir()) == []  # of the rows that ranks have read


def test_ranks_read_parquet_files_that_the_client_does_not_see(fit, expected):
    np.testing.assert_allclose(fit["parquet"], weights(expected), atol=1e-5)


def test_scores_are_those_of_the_network_before_and_after_a_save(fit, expected):
    features, labels, _ = reference.data(ROWS)
    outputs = expected(features).numpy()
    np.testing.assert_allclose(fit["scores"], outputs, atol=1e-5)
    assert fit["loaded"] == fit["scores"]
    assert fit["accuracy"] == pytest.approx((outputs.argmax(axis=1) == labels).mean())


def test_what_a_cluster_offers_is_told(fit):
    assert fit["explain"].endswith("Ready to fit.")
    assert "rank 1" in fit["check"]


def test_a_pipeline_and_a_grid(site, expected):
    found, _ = site.run("tune", str(site.folder))
    features, labels, _ = reference.data(ROWS)
    hidden = keras.Model(expected.inputs[0], expected.get_layer("hidden").output)(features).numpy()
    logistic = LogisticRegression(C=np.inf, max_iter=1000).fit(hidden, labels)
    made, loaded = map(np.array, found["pipeline"])
    assert (made == loaded).all()
    assert (made.argmax(axis=1) == logistic.predict(hidden)).mean() > 0.95
    assert found["losses"][1] < found["losses"][0]


def test_a_network_that_no_query_carries_is_sent_once(site, expected):
    found, _ = site.run("large", str(site.folder))
    assert (found["trained"], found["sent"]) == (1, 2)  # the network of the fit; then its result, for all that uses it
    np.testing.assert_allclose(found["weights"], weights(expected), atol=1e-5)
    np.testing.assert_allclose(found["scores"][0], expected(reference.data(ROWS)[0]).numpy(), atol=1e-5)
    assert found["scores"][0] == found["scores"][1] == found["loaded"]


def test_an_archive_that_is_larger_than_any_message(site):
    found, _ = site.run("archive", str(site.folder))
    assert found["bytes"] > 128 << 20
    assert found["difference"] < 1e-5
    np.testing.assert_allclose(found["scores"], found["expected"], atol=1e-5)
    assert found["loaded"] == found["scores"]


def test_progress_passes_a_firewall_around_the_client(site):
    site.firewall(close=True)
    try:
        _, shown = site.run("progress")
    finally:
        site.firewall(close=False)
    assert f"epoch 1/{EPOCHS} - " in shown
    assert last_epoch(shown)
    site.wait(lambda: not site.relays(), "the relay is gone")


@pytest.mark.parametrize("end", ["killed", "cut off", "interrupted"])
def test_a_client_that_goes_away_leaves_nothing(site, end):
    with site.started("endless") as client:
        site.wait(lambda: len(site.ranks()) == 2, "two ranks have begun")
        if end == "killed":
            client.kill()
        elif end == "cut off":
            site.link(up=False)
        else:
            client.send_signal(signal.SIGINT)
            found, _ = report(client)
            assert found == {"rows": ROWS}  # and the session can be used
        try:
            site.wait(lambda: not site.ranks(), "the ranks are gone")
            site.wait(lambda: not site.relays(), "the relay is gone")
        finally:
            site.link(up=True)
    _, shown = site.run("progress")  # needs all slots
    assert last_epoch(shown)


def test_two_clients_take_turns(site):
    with site.started("progress") as one, site.started("progress") as other, ThreadPoolExecutor(2) as pool:
        assert all(last_epoch(shown) for _, shown in pool.map(report, (one, other)))
