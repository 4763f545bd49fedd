"""What a camera in the line file may be: one frozen model per ``kind`` of source."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    SecretStr,
    model_validator,
)

Speed = PositiveFloat | Literal["max"]  # 1.0 = as it was captured, "max" = flat out


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    @property
    def silence_s(self) -> float:
        """Seconds for which a sound source may not even ask whether to stop."""
        return 0.0


class FolderSettings(_Settings):
    """Image files of a folder and the folders below it, in the order of their names."""

    kind: Literal["folder"]
    path: Path
    rate_hz: PositiveFloat | None = None  # None = flat out
    loop: bool = False
    category: str = ""


class VideoSettings(_Settings):
    """A video file or an animated GIF."""

    kind: Literal["video"]
    path: Path
    speed: Speed = 1.0
    loop: bool = False
    category: str = ""


class Reconnecting(_Settings):
    """What every live camera has: how long silence may last, and how long to try again."""

    read_timeout_s: PositiveFloat = 5.0  # silence longer than this is a lost camera
    give_up_s: NonNegativeFloat = 60.0  # outage after which the source ends with SourceLost
    category: str = ""

    @property
    def silence_s(self) -> float:
        """Drivers block while they look for a camera and while they wait for it."""
        return 10.0 + self.read_timeout_s


class CameraSettings(Reconnecting):
    """A USB camera by its index, or a network camera by its RTSP or HTTP URL."""

    kind: Literal["camera"]
    index: NonNegativeInt | None = None
    url: SecretStr | None = None  # may carry a password, so it is never shown whole
    open_timeout_s: PositiveFloat = 5.0

    @property
    def silence_s(self) -> float:
        """As of any live camera, and as long as opening may take."""
        return super().silence_s + self.open_timeout_s

    @model_validator(mode="after")
    def _one_address(self) -> Self:
        if (self.index is None) == (self.url is None):
            raise ValueError("give a camera either an index or a url")
        return self


class GigeSettings(Reconnecting):
    """A GigE Vision or USB3 Vision camera; without ip, mac or serial, the only one that answers."""

    kind: Literal["gige"]
    ip: str = ""
    mac: str = ""
    serial: str = ""  # USB3 Vision
    interface: str = ""  # network interface towards the camera
    discovery_s: PositiveFloat = 1.0
    features: dict[str, str | int | float | bool] = {}  # GenICam features set before the start
    resend: bool = True  # ask again for packets that were lost


class CameraFault(_Settings):
    """What goes wrong with the simulated camera from frame ``first`` to frame ``last``."""

    kind: Literal["lamp", "blur", "frozen", "torn", "black"]
    first: NonNegativeInt
    last: NonNegativeInt
    strength: Annotated[float, Field(ge=0, le=1)] = 1.0


class SimulatorSettings(_Settings):
    """A synthetic line."""

    kind: Literal["simulator"]
    parts: Annotated[tuple[str, ...], Field(min_length=1)] = ("disc",)
    seed: NonNegativeInt = 0
    rate_hz: NonNegativeFloat = 5.0  # 0 = flat out
    frames: PositiveInt | None = None  # None = without end
    defect_rate: Annotated[float, Field(ge=0, le=1)] = 0.2
    jitter: Annotated[float, Field(ge=0, le=1)] = 0.0  # spread of the exposure in a belt period
    rendered: PositiveInt | None = None  # so many are drawn before the first exposure, then repeat
    shown: tuple[PositiveInt, PositiveInt] | None = None  # (h, w) of an exposure; None = as drawn
    faults: tuple[CameraFault, ...] = ()


class ReplaySettings(_Settings):
    """A recording, fed again."""

    kind: Literal["replay"]
    path: Path
    speed: Speed = 1.0
    camera: str = ""  # which camera of the recording; "" = all of them


SourceSettings = Annotated[
    FolderSettings
    | VideoSettings
    | CameraSettings
    | GigeSettings
    | SimulatorSettings
    | ReplaySettings,
    Field(discriminator="kind"),
]
