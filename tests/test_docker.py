"""Laws of the images and the compose files, checked by parsing: no container engine is needed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.config import load_line

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
IMAGES = ("edge", "worker")
ROLES = {"ingest-top", "ingest-side", "inspect", "sink", "dashboard"}
WATCHERS = {"prometheus", "grafana"}
SECRET = re.compile(r"(password|secret|token|api_?key)\w*\s*[:=]\s*['\"]?(?!\$\{)\w", re.IGNORECASE)


def instructions(image: str) -> list[tuple[str, str]]:
    """A Dockerfile as (instruction, argument), with continued lines joined."""
    text = (DOCKER / f"{image}.Dockerfile").read_text("utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [
        (word.upper(), rest.strip())
        for word, rest in (line.split(maxsplit=1) for line in joined.splitlines())
    ]


def arguments(image: str, instruction: str) -> list[str]:
    """What stands behind every such instruction, in order."""
    return [rest for word, rest in instructions(image) if word == instruction]


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    """The compose file with its anchors resolved."""
    loaded: dict[str, Any] = yaml.safe_load((DOCKER / "compose.yaml").read_text("utf-8"))
    return loaded


def is_pinned(image: str) -> bool:
    """Whether an image is named by a full version, a month of NVIDIA's, or a digest."""
    version = r":v?\d+\.\d+\.\d+[\w.-]*$|:\d\d\.\d\d-py3$|@sha256:[0-9a-f]{64}$"
    return bool(re.search(version, image))


# -- the images -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "base"),
    [("edge", r"python:[\d.]+-slim-\w+"), ("worker", r"nvcr\.io/nvidia/tensorrt:.+")],
)
def test_every_base_image_is_pinned(image: str, base: str) -> None:
    """A build next year starts from the same bytes: slim Debian, or NVIDIA's TensorRT."""
    bases = [told.split()[0] for told in arguments(image, "FROM")]
    assert bases
    assert all(is_pinned(one) and re.fullmatch(base, one) for one in bases)


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_runs_as_a_user_without_rights(image: str) -> None:
    """The last USER is a number other than root's, so that a cluster can check it."""
    user = arguments(image, "USER")[-1].split(":")[0]
    assert user.isdigit()
    assert int(user) >= 1000
    assert re.search(rf"useradd --uid {user}\b", " ".join(arguments(image, "RUN")))


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_whether_it_is_healthy(image: str) -> None:
    """There is a HEALTHCHECK without a shell, and it needs no tool that a slim image lacks."""
    (check,) = arguments(image, "HEALTHCHECK")
    assert {"--interval", "--timeout", "--start-period"} <= set(
        re.findall(r"--[a-z-]+(?==)", check)
    )
    assert json.loads(check.partition(" CMD ")[2])[0] in {"python", "assayline"}
    assert not re.search(r"\b(curl|wget)\b", check)


@pytest.mark.parametrize("image", IMAGES)
def test_nothing_is_left_over_or_given_away(image: str) -> None:
    """No package lists, no pip cache, no secrets, nothing fetched by ADD, no sudo."""
    for command in arguments(image, "RUN"):
        assert "sudo" not in command
        if "apt-get install" in command:
            assert "rm -rf /var/lib/apt/lists" in command
            assert "--no-install-recommends" in command
        if "pip install" in command:
            assert "--constraint" in command
    assert "PIP_NO_CACHE_DIR=1" in " ".join(arguments(image, "ENV"))
    assert arguments(image, "ADD") == []
    assert not any(SECRET.search(t) for t in arguments(image, "ENV") + arguments(image, "ARG"))


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_keeps_the_rules_of_its_language(image: str) -> None:
    """Places are absolute, directories are entered by WORKDIR, and no pipe hides a failure."""
    words = [word for word, _ in instructions(image)]
    assert not {"MAINTAINER", "ONBUILD", "SHELL"} & set(words)
    assert all(place.startswith("/") for place in arguments(image, "WORKDIR"))
    assert words.index("WORKDIR") < words.index("COPY")
    for command in arguments(image, "RUN"):
        assert not re.search(r"(^|&& )cd |[^|]\|[^|]|;|apt-get upgrade", command), command
    # The user comes after everything that root has to do.
    after = words[len(words) - words[::-1].index("USER") :]
    assert "COPY" not in after


@pytest.mark.parametrize("image", IMAGES)
def test_entry_points_are_lists_so_that_signals_arrive(image: str) -> None:
    """A shell between the engine and us would swallow SIGTERM."""
    for instruction in ("ENTRYPOINT", "CMD"):
        assert all(argument.startswith("[") for argument in arguments(image, instruction))
    assert arguments(image, "ENTRYPOINT") == ['["assayline"]']
    assert arguments(image, "STOPSIGNAL") == ["SIGTERM"]


@pytest.mark.parametrize("image", IMAGES)
def test_everything_copied_exists_and_is_let_into_the_build(image: str) -> None:
    """COPY names files of the repository, and the ignore file does not hide them."""
    ignored = (DOCKER / f"{image}.Dockerfile.dockerignore").read_text("utf-8").splitlines()
    for argument in arguments(image, "COPY"):
        if argument.startswith("--from"):
            continue
        for source in argument.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source.removeprefix('./')}" in ignored
    assert ignored[0] == "*"


@pytest.mark.parametrize(("image", "extra"), [("edge", "dashboard"), ("worker", "gpu")])
def test_no_image_carries_torch(image: str, extra: str) -> None:
    """Inspection needs no training extra; an image would be four times as large."""
    commands = [command for command in arguments(image, "RUN") if "pip install" in command]
    assert len(commands) == 1
    assert f"'.[{extra}]'" in commands[0]
    assert not re.search(r"\btrain\b|torch", commands[0])


def test_a_gpu_worker_is_healthy_while_its_loop_turns() -> None:
    """The check asks for the loop's own heartbeat, of the line that the image inspects."""
    (check,) = arguments("worker", "HEALTHCHECK")
    assert json.loads(check.partition(" CMD ")[2]) == [
        "assayline",
        "doctor",
        "line.yaml",
        "--worker",
    ]
    assert arguments("worker", "CMD") == ['["inspect", "line.yaml"]']


def test_a_gpu_worker_may_be_read_only() -> None:
    """What libraries cache goes to /tmp, what stays to volumes that belong to its user."""
    told = " ".join(arguments("worker", "ENV"))
    for name in ("XDG_CACHE_HOME", "CUDA_CACHE_PATH"):
        assert re.search(rf"{name}=/tmp/", told)
    (volumes,) = (json.loads(argument) for argument in arguments("worker", "VOLUME"))
    owned = " ".join(c for c in arguments("worker", "RUN") if "install -d -o assayline" in c)
    assert all(volume in owned for volume in volumes)


# -- the line ---------------------------------------------------------------------------------


def test_every_role_and_its_server_are_services(compose: dict[str, Any]) -> None:
    """One service per process beside Redis and the watchers; roles have time to drain."""
    services = compose["services"]
    assert set(services) == ROLES | WATCHERS | {"redis"}
    for name in ROLES:
        assert services[name]["command"][:2] == [name.split("-")[0], "line.yaml"]
        assert services[name]["depends_on"]["redis"] == {"condition": "service_healthy"}
        assert services[name]["stop_grace_period"] == "30s"


def test_every_container_is_bounded(compose: dict[str, Any]) -> None:
    """Pinned, restarted, read only, without rights; memory, processes and logs have an end."""
    for name, service in compose["services"].items():
        assert is_pinned(service["image"]), name
        assert service["restart"] == "unless-stopped", name
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert re.fullmatch(r"\d+[mg]", service["mem_limit"]), name
        assert service["pids_limit"] > 0, name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name


def test_every_container_has_a_user_and_a_health_check(compose: dict[str, Any]) -> None:
    """Nobody is root; roles have both from their image, the others say them here."""
    for name, service in compose["services"].items():
        if name in ROLES:
            assert service["image"].startswith("assayline-edge:")
            assert "user" not in service
            continue
        assert service["user"].split(":")[0] not in {"root", "0"}, name
        check = service["healthcheck"]
        assert check["test"][0] == "CMD", name
        assert {"interval", "timeout", "retries"} <= check.keys(), name


def test_references_lead_somewhere(compose: dict[str, Any]) -> None:
    """Networks, secrets and services waited for are declared; what is mounted is there."""
    services = compose["services"]
    made_by_people = {"./bundle", "./metrics.token"}
    for name, service in services.items():
        assert set(service["networks"]) <= set(compose["networks"]), name
        assert set(service.get("secrets", [])) <= set(compose["secrets"]), name
        for other, wanted in service.get("depends_on", {}).items():
            assert wanted == {"condition": "service_healthy"}, name
            assert "healthcheck" in services[other], name
        for source in (mount.split(":")[0] for mount in service["volumes"]):
            if source.startswith("./") and source not in made_by_people:
                assert (DOCKER / source).exists(), source


def test_compose_follows_the_specification(compose: dict[str, Any]) -> None:
    """No misspelt key and no value of the wrong kind, by the Compose Specification's own types."""
    reason = "compose-spec is not installed; it is in the extra dev"
    compose_spec = pytest.importorskip("compose_spec", reason=reason)
    parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(compose))
    assert set(parsed.service_names()) == set(compose["services"])


def test_redis_is_bounded_and_forgets_nothing(compose: dict[str, Any]) -> None:
    """The settings the doctor asks for, a password from outside, and no published port."""
    redis = compose["services"]["redis"]
    command = redis["command"][-1]
    assert "--maxmemory-policy noeviction" in command
    assert re.search(r"--maxmemory \d+mb", command)
    assert '--requirepass "$$REDISCLI_AUTH"' in command
    assert "ports" not in redis
    assert redis["healthcheck"]["test"][:2] == ["CMD", "redis-cli"]


def test_compose_holds_no_secret_and_opens_only_loopback(compose: dict[str, Any]) -> None:
    """Passwords come from the environment and are asked for; the page is published to loopback."""
    lines = (DOCKER / "compose.yaml").read_text("utf-8").splitlines()
    assert not [line for line in lines if SECRET.search(line)]
    plain = re.compile(r"\$\{(\w+_PASSWORD|\w+_TOKEN):\?|http://127.0.0.1:")
    for service in compose["services"].values():
        for key, value in service.get("environment", {}).items():
            is_secret = SECRET.search(f"{key}: x") or key.startswith("ASSAYLINE_")
            assert plain.match(value) or not is_secret, key
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    assert compose["networks"]["line"] == {"internal": True}


def test_volumes_exist_and_outlive_the_containers(compose: dict[str, Any]) -> None:
    """Runs are kept in a named volume; configuration and bundle are read only."""
    for name in ROLES:
        mounts = compose["services"][name]["volumes"]
        assert "runs:/line/runs" in mounts
        assert all(mount.endswith(":ro") for mount in mounts if mount.startswith("./"))
    named = {m.split(":")[0] for s in compose["services"].values() for m in s["volumes"]}
    assert {name for name in named if not name.startswith("./")} == set(compose["volumes"])


def test_health_is_asked_where_the_line_answers(
    compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each role's health address is the port that the line's own settings give it."""
    monkeypatch.delenv("ASSAYLINE_REDIS__PASSWORD", raising=False)
    line = load_line(DOCKER / "line.yaml")
    services = compose["services"]
    for name in ROLES - {"dashboard"}:
        role, _, camera = name.partition("-")
        port = line.metrics.port_of(role, line.camera_names.index(camera) if camera else 0)
        assert services[name]["environment"]["HEALTH_URL"] == f"http://127.0.0.1:{port}/healthz"
    page = services["dashboard"]["environment"]["HEALTH_URL"]
    assert page == f"http://127.0.0.1:{line.dashboard.port}/healthz"
    named = {name: services[name]["command"][-1] for name in ROLES if name.startswith("ingest")}
    assert named == {f"ingest-{camera}": camera for camera in line.camera_names}


def test_a_plant_has_no_internet(compose: dict[str, Any]) -> None:
    """What watches looks for no updates, plugins or news."""
    told = compose["services"]["grafana"]["environment"]
    for key in ("REPORTING_ENABLED", "CHECK_FOR_UPDATES", "CHECK_FOR_PLUGIN_UPDATES"):
        assert told[f"GF_ANALYTICS_{key}"] == "false"
    assert told["GF_PLUGINS_PREINSTALL_DISABLED"] == "true"
    assert compose["services"]["prometheus"]["networks"] == ["line"]


def test_a_gpu_changes_who_inspects_and_nothing_else(compose: dict[str, Any]) -> None:
    """The file laid over the line keeps its bounds; engines outlive the container."""
    over = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text("utf-8"))
    assert set(over["services"]) == {"inspect"} <= set(compose["services"])
    inspect = over["services"]["inspect"]
    assert is_pinned(inspect["image"])
    assert (ROOT / inspect["build"]["dockerfile"]).exists()
    assert inspect["environment"] == {"ASSAYLINE_WORKER__BACKEND": "tensorrt"}
    assert inspect["healthcheck"]["test"][1:] == ["assayline", "doctor", "line.yaml", "--worker"]
    (device,) = inspect["deploy"]["resources"]["reservations"]["devices"]
    assert device == {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    places = dict(mount.split(":")[:2] for mount in inspect["volumes"])
    assert set(places) == set(over["volumes"])
    assert set(places.values()) <= set(json.loads(arguments("worker", "VOLUME")[0]))
    assert not {"read_only", "cap_drop", "user", "security_opt"} & set(inspect)


def test_what_a_person_adds_is_not_committed() -> None:
    """The password and the copied bundle stay out of the repository."""
    tracked = subprocess.run(
        ["git", "ls-files", "docker"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert not [name for name in tracked if name.endswith(".env") or "/bundle/" in name]
    assert {".env", "bundle/", "metrics.token"} <= set(
        (DOCKER / ".gitignore").read_text("utf-8").split()
    )
