"""One frozen settings tree per line: a YAML file, then the environment over it.

Relative paths are relative to the folder of the YAML file, so a line means the same from every
working directory. ``run_dir`` holds what a run leaves behind (socket, journals, archive); where the
file does not name one it is ``runs/<line>`` below the working directory. The environment overrides
single values: ``ASSAYLINE_REDIS__URL``, ``ASSAYLINE_WORKER__BACKEND``. Nobody else reads either.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit, urlunsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from engines.contracts import ADAPTIVE, BadConfig
from engines.yaml_file import read_yaml
from pipeline.access.credentials import role_address, secret_from, with_secret
from pipeline.access.door import checked, is_loopback
from pipeline.mistakes import sentence_of
from pipeline.sources.settings import (
    FolderSettings,
    ReplaySettings,
    SimulatorSettings,
    SourceSettings,
    VideoSettings,
)

GATHERING_MS = (5.0, 100.0)  # of verdicts at the sink: each read wakes two processes
GATE_SHARE = 1 / 40  # of the shortest way to a gate, which that may take
EMBEDDED = "embedded"
LIVE_GATE_MS = 500  # a reject gate half a second downstream
UNHURRIED_GATE_MS = 600_000  # a folder or a recording has no gate; still nothing waits for ever
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Port = Annotated[int, Field(ge=0, le=65_000)]


class Settings(BaseModel):
    """What all parts of the tree share: frozen, and unknown keys are an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RedisSettings(Settings):
    """Where the streams live, and as whom a role comes; a password never stays in ``url``."""

    url: str = EMBEDDED
    namespace: Name = "assayline"
    password: SecretStr | None = None
    password_file: Path | None = None  # holds the password instead
    access: Path | None = None  # folder of `doctor --setup`: a user of its own for each role
    owned: bool = False  # the line has started it, so all roles are on its host; set by `run`

    @model_validator(mode="before")
    @classmethod
    def _hide_password(cls, values: Any) -> Any:  # noqa: ANN401 - raw input
        """Move a password out of the URL, so that the URL can be printed."""
        url = values.get("url") if isinstance(values, dict) else None
        if not isinstance(url, str) or not (parts := urlsplit(url)).password:
            return values
        netloc = f"{parts.username or ''}@{parts.netloc.rpartition('@')[2]}"
        bare = urlunsplit(parts._replace(netloc=netloc.lstrip("@")))
        return {"password": parts.password, **values, "url": bare}

    @model_validator(mode="after")
    def _come_as_one(self) -> Self:
        parts = urlsplit(self.url)
        if "password=" in parts.query:
            raise ValueError("a password does not belong behind '?'; use password_file or access")
        named = [self.password, self.password_file, self.access]
        if len([one for one in named if one is not None]) > 1 or (self.access and parts.username):
            raise ValueError("name one of password, password_file and access, which brings users")
        return self

    @property
    def embedded(self) -> bool:
        """Whether this line starts a server of its own."""
        return self.url == EMBEDDED

    @property
    def on_this_host(self) -> bool:
        """Whether the address names this machine, which alone says that all roles run on it."""
        parts = urlsplit(self.url)
        return self.embedded or parts.scheme == "unix" or is_loopback(parts.hostname or "")

    def address(self, role: str = "operator", url: str = "") -> str:
        """The URL to connect to as a role, password included; never print it.

        ``url`` is where the server is, for one that this line has started itself.
        """
        url = url or self.url
        if self.access is not None:
            return role_address(url, self.access, self.namespace, role)
        if self.password_file is not None:
            return with_secret(url, secret_from(self.password_file))
        return with_secret(url, self.password.get_secret_value()) if self.password else url


def _gate_of(values: dict[str, Any]) -> int:
    return UNHURRIED_GATE_MS if _unhurried(values["source"]) else LIVE_GATE_MS


def _unhurried(source: SourceSettings) -> bool:
    """Whether frames can wait at their source: they come from storage, not from a belt."""
    match source:
        case FolderSettings():
            return source.rate_hz is None
        case SimulatorSettings():
            return source.rate_hz == 0
        case VideoSettings() | ReplaySettings():
            return source.speed == "max"
        case _:
            return False


class CameraSettings(Settings):
    """One camera and the part that passes below it."""

    name: Name
    source: SourceSettings
    gate_ms: PositiveInt = Field(default_factory=_gate_of)  # from exposure to the reject gate
    category: str = ""  # "" = unknown; a frame's own category wins
    recipe: str = ""
    lot: str = ""
    crop: tuple[NonNegativeInt, NonNegativeInt, PositiveInt, PositiveInt] | None = None  # x y w h
    credits: PositiveInt = 32  # frames of this camera admitted and unanswered, at most
    # of model inputs; shared = by memory of the host, auto = so where the line has its own server
    transport: Literal["auto", "inline", "shared"] = "auto"
    codec: Literal["none", "lz4"] = "none"  # of model inputs in the stream; for links, not sockets
    originals_bytes: NonNegativeInt = 0  # memory for full exposures, of which rejects are archived
    overrun: Literal["reject", "wait"] = Field(
        default_factory=lambda values: "wait" if _unhurried(values["source"]) else "reject"
    )

    @property
    def is_unhurried(self) -> bool:
        """Whether its source gives exposures from storage, as fast as they are taken."""
        return _unhurried(self.source)

    @property
    def may_share(self) -> bool:
        """Whether its model inputs may travel by shared memory."""
        return self.transport != "inline" and self.codec == "none"

    @model_validator(mode="after")
    def _pack_what_travels(self) -> Self:
        if self.transport == "shared" and self.codec != "none":
            raise ValueError(
                f"camera {self.name} shares its images by memory, where nothing is packed; leave "
                "codec out, or choose transport: inline"
            )
        return self


class WorkerSettings(Settings):
    """How frames are inspected."""

    processes: PositiveInt = 1
    index: NonNegativeInt = 0  # which of them this one is; the supervisor says
    backend: Literal["torch", "torch-cuda", "openvino", "tensorrt", "stub"] = "openvino"
    # fp16 and fp8 are TensorRT's; int8 is where `assayline build` made it
    precision: Literal["auto", "f32", "bf16", "fp16", "int8", "fp8"] = "auto"
    threads: PositiveInt | None = None  # of the CPU runtime; absent = it chooses
    engines: PositiveInt | None = None  # on a CPU, that share threads and slots; absent = as fits
    slots: PositiveInt = 32  # rows in flight
    batch_max: int = Field(default=16, ge=1, le=64)  # rows in one call; a CPU takes 16 at most
    plan: int = Field(default=ADAPTIVE, ge=ADAPTIVE)
    margin_ms: int = Field(default=20, ge=5)  # a finding must be there so long before its gate
    early_exit: bool = True  # rows leave where no further step can change their verdict
    fill_ms: NonNegativeInt = 0  # a frame waits so long for company while nothing else is to do
    renew_ms: PositiveInt = 200  # how often the loop says that its entries are alive
    reclaim_idle_ms: PositiveInt = 1000  # a pending entry this long unrenewed is taken over
    deliveries_max: PositiveInt = 3  # then the entry is quarantined


class JsonlSettings(Settings):
    """One line of JSON per verdict."""

    path: Path | None = None  # absent: <run_dir>/verdicts.jsonl
    fsync: Literal["never", "second", "each"] = "second"


class ArchiveSettings(Settings):
    """Picture, mask and map of every part that did not pass."""

    folder: Path | None = None  # absent: <run_dir>/archive
    max_bytes: PositiveInt = 2_000_000_000  # of parts
    evidence: bool = True  # every verdict, too, chained by hashes in one file per lot


class MqttSettings(Settings):
    """Verdicts to a broker, at ``<topic>/<camera>``."""

    host: str = "127.0.0.1"
    port: PositiveInt = 1883
    topic: str = "assayline/verdicts"
    qos: Literal[0, 1] = 1
    username: str | None = None
    password: SecretStr | None = None
    queue: PositiveInt = 256


class WebhookSettings(Settings):
    """Verdicts posted as JSON."""

    url: str = Field(pattern=r"^https?://")
    decisions: tuple[Literal["PASS", "FAIL", "UNDECIDED"], ...] = ("FAIL", "UNDECIDED")
    timeout_s: PositiveFloat = 5.0
    attempts: PositiveInt = 5
    queue: PositiveInt = 256


class RejectSettings(Settings):
    """The reject signal as a file that a PLC bridge watches; silence means reject."""

    path: Path | None = None  # absent: <run_dir>/reject.json
    heartbeat_ms: PositiveInt = 100


class SinkSettings(Settings):
    """Where verdicts go; what is absent is off."""

    jsonl: JsonlSettings | None = None
    archive: ArchiveSettings | None = None
    mqtt: MqttSettings | None = None
    webhook: WebhookSettings | None = None
    reject: RejectSettings | None = None
    margin_ms: PositiveInt = 5  # the gate keeper answers this long before the gate


class DoorSettings(Settings):
    """Something that listens: for this machine alone, or for whoever shows its token."""

    host: str = "127.0.0.1"
    token: SecretStr | None = None
    token_file: Path | None = None  # holds the token instead

    def secret(self, key: str) -> str:
        """The token to ask for, "" for none; BadConfig where others could come in without."""
        if self.token_file is not None:
            return checked(self.host, secret_from(self.token_file), key)
        return checked(self.host, self.token.get_secret_value() if self.token else "", key)


class DashboardSettings(DoorSettings):
    """The page for people."""

    enabled: bool = True
    port: Port = 8080


class MetricsSettings(DoorSettings):
    """/metrics: the sink on ``port``, workers from + 1, page + 31, `run` + 32, cameras from + 33.

    0 = off.
    """

    port: Port = 0

    def port_of(self, role: str, index: int = 0) -> int:
        """Port of one process of a role; 0 where metrics are off."""
        places = {"sink": 0, "inspect": 1, "dashboard": 31, "run": 32, "ingest": 33}
        return self.port and self.port + places[role] + index


class LineSettings(BaseSettings):
    """Everything one line needs to know."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="ASSAYLINE_",
        env_nested_delimiter="__",
        hide_input_in_errors=True,  # a mistake may stand beside a password
    )

    line: Name
    bundle: Path
    run_dir: Path = Field(default_factory=lambda values: Path("runs", values["line"]).absolute())
    redis: RedisSettings = RedisSettings()
    cameras: tuple[CameraSettings, ...]
    worker: WorkerSettings = WorkerSettings()
    sinks: SinkSettings = SinkSettings()
    dashboard: DashboardSettings = DashboardSettings()
    metrics: MetricsSettings = MetricsSettings()
    recording: Path | None = None  # folder where cameras record their frames; set by `record`
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 - the names are pydantic-settings' own
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 - as above
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Let the environment win over the file."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _name_cameras_once(self) -> Self:
        names = self.camera_names
        if not names:
            raise ValueError("the line has no camera; name at least one below cameras")
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ValueError(f"two cameras are called {min(twice)}; give each its own name")
        return self

    @model_validator(mode="after")
    def _share_memory_on_one_host(self) -> Self:
        for camera in self.cameras:
            shares = self.shares_memory(camera)
            wanted = "transport: shared" if shares else "originals_bytes"
            if (shares or camera.originals_bytes) and not self.redis.on_this_host:
                raise ValueError(
                    f"camera {camera.name} asks for {wanted}, which needs all roles on one host, "
                    "but redis.url names another; leave it out, or use a Redis on this host"
                )
        return self

    @property
    def gathering_ms(self) -> float:
        """How long a sink lets verdicts come together; by so much earlier they have to be there.

        0 where a gate is near: each verdict is then told as soon as it is there.
        """
        least_ms, most_ms = GATHERING_MS
        fitting_ms = GATE_SHARE * min(camera.gate_ms for camera in self.cameras)
        return min(fitting_ms, most_ms) if fitting_ms >= least_ms else 0.0

    @property
    def keeper_margin_ms(self) -> float:
        """How long before its gate a part is answered by the gate keeper, if by nobody else."""
        return self.sinks.margin_ms + self.gathering_ms

    @property
    def camera_names(self) -> tuple[str, ...]:
        """Names of the cameras, in the order of the file."""
        return tuple(camera.name for camera in self.cameras)

    @property
    def shared_cameras(self) -> tuple[str, ...]:
        """Names of the cameras whose model inputs may come by shared memory.

        Whoever reads takes them as they come: each camera decides for itself.
        """
        return tuple(camera.name for camera in self.cameras if camera.may_share)

    def shares_memory(self, camera: CameraSettings) -> bool:
        """Whether a camera's model inputs travel by shared memory, where there is room for them.

        By itself only beside a server of the line's own: there all roles are on one host, and in
        one container where they are in any.
        """
        is_own = self.redis.embedded or self.redis.owned
        return camera.may_share and (is_own or camera.transport == "shared")

    def camera(self, name: str) -> CameraSettings:
        """One camera by its name; BadConfig where the line has none of that name."""
        for camera in self.cameras:
            if camera.name == name:
                return camera
        known = ", ".join(self.camera_names)
        raise BadConfig(f"line {self.line} has no camera {name}; it has {known}")


def load_line(path: str | Path) -> LineSettings:
    """Read, check and freeze the configuration of a line; BadConfig in one sentence."""
    path = Path(path)
    raw = read_yaml(path)
    if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
        raise BadConfig(f"{path} holds no settings; start from configs/line.example.yaml")
    try:
        settings = LineSettings(**raw)
    except ValidationError as error:
        raise BadConfig(f"{path}: {sentence_of(error, LineSettings)}") from error
    anchored: LineSettings = _anchored(settings, path.resolve().parent)
    return anchored


def _anchored(value: Any, folder: Path) -> Any:  # noqa: ANN401 - a tree of settings
    """The same tree with every relative path below ``folder``."""
    match value:
        case Path():
            return folder / value
        case BaseModel():
            fields = {name: getattr(value, name) for name in type(value).model_fields}
            return value.model_copy(
                update={name: _anchored(part, folder) for name, part in fields.items()}
            )
        case tuple():
            return tuple(_anchored(part, folder) for part in value)
        case _:
            return value
