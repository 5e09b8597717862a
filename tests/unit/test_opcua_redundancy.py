"""Which URL of several is used: the order written, health, no flapping."""

from __future__ import annotations

from gateway.collect.opcua.redundancy import HEALTHY, LOOK_AGAIN_NS, Urls

A, B, C = "opc.tcp://10.0.0.1", "opc.tcp://10.0.0.2", "opc.tcp://10.0.0.3"


def test_one_url_is_kept_whatever_it_says():
    urls = Urls([A])
    assert urls.keep(0, 0)
    urls.failed()
    assert urls.current == A


def test_the_next_is_tried_when_one_fails_and_a_healthy_one_is_kept():
    urls = Urls([A, B])
    urls.failed()
    assert urls.current == B
    assert urls.keep(255, 0)
    assert urls.current == B, "no way back while it is healthy"
    urls.failed()
    assert urls.current == A


def test_a_degraded_server_is_left_for_a_healthy_one():
    urls = Urls([A, B])
    assert not urls.keep(HEALTHY - 1, 0)
    assert urls.current == B
    assert urls.keep(HEALTHY, 0)


def test_where_none_is_healthy_the_best_is_borne_and_the_others_are_asked_again_later():
    urls = Urls([A, B, C])
    assert not urls.keep(10, 0)
    assert not urls.keep(150, 0)
    assert urls.current == C
    assert not urls.keep(20, 0)
    assert urls.current == B
    assert urls.keep(150, 5)
    assert urls.keep(150, LOOK_AGAIN_NS)
    assert not urls.keep(150, LOOK_AGAIN_NS + 6)
    assert urls.current == A


def test_a_degraded_server_is_better_than_one_that_does_not_answer():
    urls = Urls([A, B])
    assert not urls.keep(100, 0)
    urls.failed()  # B does not answer
    assert urls.current == A
    assert urls.keep(100, 1)


def test_all_down_goes_round_for_ever():
    urls = Urls([A, B, C])
    seen = []
    for _ in range(7):
        seen.append(urls.current)
        urls.failed()
    assert seen == [A, B, C, A, B, C, A]
