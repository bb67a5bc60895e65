"""Who reaches whom under the network policies of deploy/kubernetes."""

from typing import Any

import pytest
from kustomize import Object
from manifests import OVERLAYS, everything, find, pods, ports, selects

PROMETHEUS = ("monitoring", {"app.kubernetes.io/name": "prometheus"})
INGRESS = ("ingress-nginx", {"app.kubernetes.io/name": "ingress-nginx"})
DNS = ("kube-system", {"k8s-app": "kube-dns"})
Peer = tuple[str, dict[str, str]]
"""Namespace and labels of a pod."""


class Network:
    """The policies of an overlay, as Kubernetes reads them: what any of them allows is allowed."""

    def __init__(self, overlay: str) -> None:
        objects = everything(overlay)
        self.policies = [one["spec"] for one in objects if one["kind"] == "NetworkPolicy"]
        self.pods = pods(objects)
        self.home = find(objects, "Namespace")["metadata"]["name"]

    def comes_in(self, source: Peer, target: str, port: int, protocol: str = "TCP") -> bool:
        """Whether a pod of ours may be spoken to."""
        return self._allows("ingress", "from", target, source, port, protocol, named=ports(self.pods[target]))

    def goes_out(self, source: str, target: Peer, port: int, protocol: str = "TCP") -> bool:
        """Whether a pod of ours may speak."""
        return self._allows("egress", "to", source, target, port, protocol, named={})

    def own(self, name: str) -> Peer:
        return self.home, self.pods[name]["labels"]

    def _allows(
        self, way: str, end: str, own: str, other: Peer, port: int, protocol: str, *, named: dict[str, int]
    ) -> bool:
        kind = way.capitalize()
        labels = self.pods[own]["labels"]
        applied = [one for one in self.policies if kind in one["policyTypes"] and selects(one["podSelector"], labels)]
        assert all({way, "podSelector", "policyTypes"} | {"egress", "ingress"} >= one.keys() for one in applied)
        rules = [rule for one in applied for rule in one.get(way, [])]
        return not applied or any(
            any(self._is(peer, other) for peer in rule[end])
            and any(
                (entry["protocol"], named.get(entry["port"], entry["port"])) == (protocol, port)
                for entry in rule["ports"]
            )
            for rule in rules
        )

    def _is(self, selector: dict[str, Any], peer: Peer) -> bool:
        namespace, labels = peer
        assert selector.keys() <= {"namespaceSelector", "podSelector"}
        if "namespaceSelector" not in selector:
            in_place = namespace == self.home
        else:
            in_place = selects(selector["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
        return in_place and selects(selector.get("podSelector", {}), labels)


@pytest.fixture(params=OVERLAYS)
def network(request: pytest.FixtureRequest) -> Network:
    return Network(request.param)


def test_the_ingress_and_prometheus_reach_the_service_and_nobody_else_does(network: Network) -> None:
    port = ports(network.pods["oneslate"])["http"]
    assert network.comes_in(INGRESS, "oneslate", port)
    assert network.comes_in(PROMETHEUS, "oneslate", port)
    strangers = [("default", PROMETHEUS[1]), ("monitoring", {"app.kubernetes.io/name": "grafana"}), ("shop", {})]
    for stranger in [*strangers, network.own("oneslate-collector"), network.own("oneslate-loader")]:
        assert not network.comes_in(stranger, "oneslate", port)
    assert not network.comes_in(INGRESS, "oneslate", port + 1)


def test_prometheus_alone_reaches_the_collector(network: Network) -> None:
    port = ports(network.pods["oneslate-collector"])["metrics"]
    assert network.comes_in(PROMETHEUS, "oneslate-collector", port)
    for stranger in (INGRESS, network.own("oneslate"), ("monitoring", {})):
        assert not network.comes_in(stranger, "oneslate-collector", port)


@pytest.mark.parametrize("name", ["oneslate", "oneslate-collector"])
def test_service_and_collector_reach_dns_and_redis_and_nothing_else(network: Network, name: str) -> None:
    redis = (network.home, find_redis_labels())
    assert network.goes_out(name, redis, 6379)
    assert network.goes_out(name, DNS, 53, "UDP")
    assert network.goes_out(name, DNS, 53, "TCP")
    for target, port in [(redis, 22), (DNS, 443), (("default", {}), 443), (("shop", redis[1]), 6379)]:
        assert not network.goes_out(name, target, port)


@pytest.mark.parametrize("name", ["oneslate-demo-bundle", "oneslate-loader"])
def test_what_fills_the_volume_of_bundles_reaches_nobody(network: Network, name: str) -> None:
    for target, port in [((network.home, find_redis_labels()), 6379), (DNS, 53), (("default", {}), 443)]:
        assert not network.goes_out(name, target, port)
        assert not network.goes_out(name, target, port, "UDP")
    assert not network.comes_in(INGRESS, name, 8000)


def test_redis_is_for_service_and_collector() -> None:
    network = Network("kind")
    port = ports(network.pods["oneslate-redis"])["redis"]
    assert port == 6379
    for name in ("oneslate", "oneslate-collector"):
        assert network.comes_in(network.own(name), "oneslate-redis", port)
    for stranger in (INGRESS, PROMETHEUS, network.own("oneslate-loader"), ("shop", network.pods["oneslate"]["labels"])):
        assert not network.comes_in(stranger, "oneslate-redis", port)
    assert not network.goes_out("oneslate-redis", ("default", {}), 443)


def find_redis_labels() -> dict[str, str]:
    redis: Object = pods(everything("kind"))["oneslate-redis"]
    labels: dict[str, str] = redis["labels"]
    return labels
