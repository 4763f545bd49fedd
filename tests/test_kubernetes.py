"""Laws of the Kubernetes folders: every reference leads somewhere, every pod is bounded.

The published schemas have a say where ``kubernetes-validate`` is installed, kustomize where
``kubectl`` is found; no cluster is needed.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from pipeline.cli import app
from pipeline.config import LineSettings, load_line
from pipeline.stream.facts import Keys

ROOT = Path(__file__).parents[1]
KUBERNETES = ROOT / "docker" / "kubernetes"
FOLDERS = ("line", "replay")
SECRET_KEYS = {"redis-password", "metrics-token", "dashboard-token"}  # as the README creates them
PODS = {"Deployment", "StatefulSet", "Job"}
OURS = {"ScaledObject", "TriggerAuthentication"}  # of KEDA, which publishes no schema in a package
# A worker is alive while its inspection loop turns, which only the worker's own numbers say.
WORKER_HEALTH = ["assayline", "doctor", "line.yaml", "--worker"]
VERSION = "1.32"  # of the schemas
NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
Doc = dict[str, Any]


def kustomization(folder: Path) -> Doc:
    """What a folder is made of."""
    loaded: Doc = yaml.safe_load((folder / "kustomization.yaml").read_text("utf-8"))
    return loaded


def documents(folder: Path) -> Iterator[Doc]:
    """Every manifest of a folder, those of the folders it names included."""
    for name in kustomization(folder)["resources"]:
        path = folder / name
        if path.is_dir():
            yield from documents(path)
        else:
            yield from yaml.safe_load_all(path.read_text("utf-8"))


class Manifests:
    """The manifests of one folder, by kind and name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = KUBERNETES / name
        self.all = list(documents(self.folder))

    def of(self, *kinds: str) -> dict[str, Doc]:
        """Manifests of some kinds by name."""
        return {doc["metadata"]["name"]: doc for doc in self.all if doc["kind"] in kinds}

    @property
    def templates(self) -> dict[str, Doc]:
        """Pod templates by the name of what makes them."""
        return {name: doc["spec"]["template"] for name, doc in self.of(*PODS).items()}

    @property
    def roles(self) -> dict[str, Doc]:
        """Pod specs of our own roles."""
        return {name: one["spec"] for name, one in self.templates.items() if name != "redis"}

    def pods_like(self, selector: Doc) -> set[str]:
        """Names of the templates that a selector chooses."""
        return {
            name
            for name, one in self.templates.items()
            if matches(selector, one["metadata"]["labels"])
        }


def matches(selector: Doc, labels: dict[str, str]) -> bool:
    """Whether labels satisfy a selector; an empty one takes all."""
    said = selector.get("matchLabels", {})
    asked = selector.get("matchExpressions", [])
    assert all(one["operator"] == "In" for one in asked)
    return said.items() <= labels.items() and all(
        labels.get(one["key"]) in one["values"] for one in asked
    )


@pytest.fixture(params=FOLDERS)
def manifests(request: pytest.FixtureRequest) -> Manifests:
    """A live line, and a replay."""
    return Manifests(request.param)


@pytest.fixture
def line(manifests: Manifests, monkeypatch: pytest.MonkeyPatch) -> LineSettings:
    """What the pods of a folder are told."""
    monkeypatch.delenv("ASSAYLINE_REDIS__PASSWORD", raising=False)
    return load_line(manifests.folder / "line.yaml")


def only(container: list[Doc]) -> Doc:
    """The one container of a pod."""
    (one,) = container
    return one


# -- as a whole -------------------------------------------------------------------------------


def test_every_manifest_follows_the_published_schema(manifests: Manifests) -> None:
    """No misspelt or foreign field, by Kubernetes' own schemas, strictly."""
    reason = "kubernetes-validate is not installed; it is in the extra dev"
    validate = pytest.importorskip("kubernetes_validate", reason=reason)
    checked = [doc for doc in manifests.all if doc["kind"] not in OURS]
    for doc in checked:
        validate.validate(doc, VERSION, strict=True)
    assert len(checked) >= len(manifests.all) - 2


def test_every_file_belongs(manifests: Manifests) -> None:
    """Nothing lies in a folder that kustomize does not take, and names are given once."""
    told = kustomization(manifests.folder)
    taken = {*told["resources"], *told["configMapGenerator"][0]["files"], "kustomization.yaml"}
    assert {path.name for path in manifests.folder.iterdir()} <= taken
    named = [(doc["kind"], doc["metadata"]["name"]) for doc in manifests.all]
    assert len(set(named)) == len(named)
    (namespace,) = manifests.of("Namespace")
    assert namespace == told["namespace"]


def test_kustomize_builds(manifests: Manifests) -> None:
    """kubectl puts the folder together; pods are renewed when line.yaml changes."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    words = [kubectl, "kustomize", str(manifests.folder)]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    (settings,) = [doc["metadata"]["name"] for doc in built if doc["kind"] == "ConfigMap"]
    assert settings.startswith("line-")
    for doc in built:
        if doc["kind"] in PODS and doc["metadata"]["name"] != "redis":
            assert f"'name': '{settings}'" in str(doc)
    assert len(built) == len(manifests.all) + 1


# -- pods -------------------------------------------------------------------------------------


def test_every_pod_is_bounded(manifests: Manifests) -> None:
    """Not root, no rights, writes to its mounts alone, no token of the cluster, bounded memory."""
    for name, template in manifests.templates.items():
        pod = template["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["runAsUser"] > 0, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert pod["automountServiceAccountToken"] is False, name
        container = only(pod["containers"])
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }, name
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
        assert "memory" in container["resources"]["limits"], name


def test_images_are_pinned(manifests: Manifests) -> None:
    """Ours by the tag that kustomize sets, the server by its full version."""
    told = {one["name"]: str(one["newTag"]) for one in kustomization(manifests.folder)["images"]}
    for name, template in manifests.templates.items():
        image, tag = only(template["spec"]["containers"])["image"].split(":")
        assert tag.count(".") == 2, name
        assert told.get(image, tag) == tag, name
    assert (
        only(manifests.templates["redis"]["spec"]["containers"])["image"]
        == (
            yaml.safe_load((ROOT / "docker/compose.yaml").read_text("utf-8"))["services"]["redis"][
                "image"
            ]
        )
    )


def test_selectors_choose_their_own_pods(manifests: Manifests) -> None:
    """Whoever makes pods, serves, protects or isolates them names labels that pods have."""
    for name, doc in manifests.of("Deployment", "StatefulSet").items():
        assert manifests.pods_like(doc["spec"]["selector"]) == {name}
    for name, doc in manifests.of("Service").items():
        assert manifests.pods_like({"matchLabels": doc["spec"]["selector"]}) == {name}
    for doc in manifests.of("PodDisruptionBudget").values():
        assert manifests.pods_like(doc["spec"]["selector"])
    for doc in manifests.of("NetworkPolicy").values():
        assert manifests.pods_like(doc["spec"]["podSelector"])
    for name, pod in manifests.roles.items():
        for spread in pod.get("topologySpreadConstraints", []):
            assert manifests.pods_like(spread["labelSelector"]) == {name}


def test_references_lead_somewhere(manifests: Manifests) -> None:
    """Claims, settings, secrets and services that pods name exist; every volume is mounted."""
    claims, services = set(manifests.of("PersistentVolumeClaim")), manifests.of("Service")
    (settings,) = kustomization(manifests.folder)["configMapGenerator"]
    for name, doc in manifests.of(*PODS).items():
        pod = doc["spec"]["template"]["spec"]
        container = only(pod["containers"])
        templates = {one["metadata"]["name"] for one in doc["spec"].get("volumeClaimTemplates", [])}
        volumes = {one["name"] for one in pod["volumes"]} | templates
        assert {mount["name"] for mount in container["volumeMounts"]} == volumes, name
        for volume in pod["volumes"]:
            assert volume.get("persistentVolumeClaim", {}).get("claimName") in claims | {None}
            assert volume.get("configMap", {}).get("name") in {settings["name"], None}
        for variable in container["env"]:
            secret = variable["valueFrom"]["secretKeyRef"]
            assert (secret["name"], secret["key"] in SECRET_KEYS) == ("assayline", True)
        if doc["kind"] == "StatefulSet":
            assert doc["spec"]["serviceName"] in services
    readme = (KUBERNETES / "README.md").read_text("utf-8")
    assert all(f"--from-literal={key}=" in readme for key in SECRET_KEYS)


def test_probes_and_services_meet_a_port(manifests: Manifests) -> None:
    """What is asked is what listens; health needs no token, a command is in its image."""
    ports = {
        name: {
            one["name"]: one["containerPort"] for one in only(pod["spec"]["containers"])["ports"]
        }
        for name, pod in manifests.templates.items()
    }
    for name, template in manifests.templates.items():
        container = only(template["spec"]["containers"])
        probes = [container[key] for key in container if key.endswith("Probe")]
        assert "livenessProbe" in container, name
        for probe in probes:
            if name == "redis":
                assert probe["exec"]["command"] == ["redis-cli", "ping"]
                continue
            if "exec" in probe:
                assert (name, probe["exec"]["command"]) == ("inspect", WORKER_HEALTH)
                continue
            assert probe["httpGet"]["path"] == "/healthz"
            assert probe["httpGet"]["port"] in ports[name], name
    for name, doc in manifests.of("Service").items():
        for port in doc["spec"]["ports"]:
            assert ports[name][port["targetPort"]] == port["port"], name


# -- the line ---------------------------------------------------------------------------------


def test_roles_run_commands_that_exist_on_ports_that_the_settings_give(
    manifests: Manifests, line: LineSettings
) -> None:
    """Each camera has its process, each process its command and the port that metrics give it."""
    commands = set(get_command(app).commands)  # type: ignore[attr-defined]
    cameras = []
    for name, pod in manifests.roles.items():
        container = only(pod["containers"])
        role, settings, *options = container["args"]
        assert (role in commands, settings) == (True, "line.yaml")
        assert role == name.split("-")[0] == container["name"]
        index = 0
        if role == "ingest":
            assert options == ["--camera", name.removeprefix("ingest-")]
            cameras.append(options[1])
            index = line.camera_names.index(options[1])
        (port,) = [one["containerPort"] for one in container["ports"] if one["name"] == "metrics"]
        assert port == line.metrics.port_of(role, index)
    assert tuple(cameras) == line.camera_names
    assert line.redis.url == "redis://redis:6379"


def test_paths_of_the_settings_are_mounted(manifests: Manifests, line: LineSettings) -> None:
    """Bundle, run folder and recordings of line.yaml are where the pods have them."""
    for name, pod in manifests.roles.items():
        mounts = {one["mountPath"]: one for one in only(pod["containers"])["volumeMounts"]}
        assert {"/line/line.yaml", "/line/bundle", "/line/runs"} <= set(mounts)
        assert mounts["/line/bundle"]["readOnly"] is True
        assert line.bundle.name == "bundle"
        assert line.run_dir.name == "runs"
        if manifests.name == "replay" and name.startswith("ingest"):
            for camera in line.cameras:
                path = camera.source.path  # type: ignore[union-attr]
                assert f"/line/{path.parent.name}" in mounts


def test_a_worker_is_alive_while_its_loop_turns(manifests: Manifests) -> None:
    """The command that says so exists, and engines may take minutes to load."""
    inspect = only(manifests.roles["inspect"]["containers"])
    assert inspect["livenessProbe"]["exec"]["command"] == WORKER_HEALTH
    startup = inspect["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 600
    doctor = get_command(app).commands[WORKER_HEALTH[1]]  # type: ignore[attr-defined]
    assert "--worker" in {option for one in doctor.params for option in one.opts}


def test_of_what_keeps_order_there_is_one() -> None:
    """Cameras, sink and server are single and kept from eviction; workers are several."""
    line = Manifests("line")
    for name, doc in line.of("Deployment", "StatefulSet").items():
        single = name != "inspect"
        assert (doc["spec"]["replicas"] == 1) is single, name
    budgets = line.of("PodDisruptionBudget")
    protected = line.pods_like(budgets["single"]["spec"]["selector"])
    assert protected == {"redis", "sink", "ingest-top", "ingest-side"}
    assert line.pods_like(budgets["inspect"]["spec"]["selector"]) == {"inspect"}
    assert line.of("Deployment")["inspect"]["spec"]["replicas"] >= 2


def test_prometheus_finds_the_same_names() -> None:
    """Services are called as prometheus.yml asks, so one file serves compose and cluster."""
    asked = yaml.safe_load((ROOT / "docker/prometheus/prometheus.yml").read_text("utf-8"))
    services = Manifests("line").of("Service")
    for job in asked["scrape_configs"]:
        targets = [t for one in job.get("static_configs", []) for t in one["targets"]]
        for looked_up in job.get("dns_sd_configs", []):
            for name in looked_up["names"]:
                targets.append(f"{name}:{looked_up['port']}")
                assert services[name]["spec"]["clusterIP"] == "None"  # each pod has an address
        for name, port in (target.split(":") for target in targets):
            assert int(port) in {one["port"] for one in services[name]["spec"]["ports"]}


# -- the network ------------------------------------------------------------------------------


def test_nothing_talks_unless_it_is_said(manifests: Manifests) -> None:
    """All is refused by default; Redis is heard by roles alone (and KEDA, where it scales)."""
    policies = manifests.of("NetworkPolicy")
    nothing = policies["nothing"]["spec"]
    assert nothing == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    (heard,) = policies["redis"]["spec"]["ingress"]
    roles = manifests.pods_like(heard["from"][0]["podSelector"])
    assert roles == set(manifests.roles)
    assert roles == manifests.pods_like(policies["roles"]["spec"]["podSelector"])
    namespaces = [one["namespaceSelector"]["matchLabels"] for one in heard["from"][1:]]
    keda = [{"kubernetes.io/metadata.name": "keda"}]
    assert namespaces == (keda if manifests.name == "replay" else [])


def test_numbers_are_reachable_and_nothing_else_is(manifests: Manifests) -> None:
    """Ports that policies open are ports that processes have: all of them, and no more."""
    opened = {
        port["port"]
        for name in ("redis", "numbers", "page")
        if name in manifests.of("NetworkPolicy")
        for rule in manifests.of("NetworkPolicy")[name]["spec"]["ingress"]
        for port in rule["ports"]
    }
    listening = {
        port["containerPort"]
        for one in manifests.templates.values()
        for port in only(one["spec"]["containers"])["ports"]
    }
    assert opened == listening


# -- scaling ----------------------------------------------------------------------------------


def test_only_a_replay_is_scaled() -> None:
    """Nothing scales a live line: an engine that still loads judges no part in time."""
    kinds = {doc["kind"] for doc in Manifests("line").all}
    assert not kinds & {"ScaledObject", "ScaledJob", "HorizontalPodAutoscaler"}


def test_workers_follow_the_streams_of_their_cameras(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trigger per camera, at its stream of frames, on the replay's own server and secret."""
    monkeypatch.delenv("ASSAYLINE_REDIS__PASSWORD", raising=False)
    replay = Manifests("replay")
    line = load_line(replay.folder / "line.yaml")
    (scaled,) = replay.of("ScaledObject").values()
    target = replay.of("Deployment")[scaled["spec"]["scaleTargetRef"]["name"]]
    assert "replicas" not in target["spec"]  # or every apply would undo the scaling
    assert 1 <= scaled["spec"]["minReplicaCount"] < scaled["spec"]["maxReplicaCount"]
    triggers = scaled["spec"]["triggers"]
    streams = [trigger["metadata"]["stream"] for trigger in triggers]
    assert streams == [Keys(line.redis.namespace, name).frames for name in line.camera_names]
    for trigger in triggers:
        assert trigger["type"] == "redis-streams"
        told = trigger["metadata"]
        assert set(told) == {"address", "stream", "streamLength"}
        assert all(isinstance(value, str) for value in told.values())
        host, port = told["address"].split(":")
        assert host == f"redis.{kustomization(replay.folder)['namespace']}.svc.cluster.local"
        assert int(port) == replay.of("Service")["redis"]["spec"]["ports"][0]["port"]
        (auth,) = [replay.of("TriggerAuthentication")[trigger["authenticationRef"]["name"]]]
        (secret,) = auth["spec"]["secretTargetRef"]
        assert secret == {"parameter": "password", "name": "assayline", "key": "redis-password"}


def test_a_replay_can_use_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its cameras may have so much open that the most workers are asked for, and wait otherwise."""
    monkeypatch.delenv("ASSAYLINE_REDIS__PASSWORD", raising=False)
    replay = Manifests("replay")
    line = load_line(replay.folder / "line.yaml")
    (scaled,) = replay.of("ScaledObject").values()
    each = int(scaled["spec"]["triggers"][0]["metadata"]["streamLength"])
    for camera in line.cameras:
        assert camera.credits >= each * scaled["spec"]["maxReplicaCount"]
        assert camera.overrun == "wait"
        assert camera.source.kind == "replay"
    assert line.sinks.reject is None
    assert line.sinks.mqtt is None
    assert line.sinks.webhook is None
