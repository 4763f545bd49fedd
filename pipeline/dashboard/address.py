"""Where a visitor is: page, language, brightness and choices, all in the address they can share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from pipeline.dashboard.texts import ENGLISH, Speech, language_of

if TYPE_CHECKING:
    from starlette.requests import Request

LASTING = ("lang", "theme")  # what goes along from page to page


@dataclass(frozen=True, slots=True)
class Address:
    """One page as it was asked for."""

    path: str = "/"
    query: Mapping[str, str] = field(default_factory=dict)
    say: Speech = ENGLISH

    @classmethod
    def of(cls, request: Request) -> Address:
        """From a browser's request."""
        query = dict(request.query_params)
        accepted = request.headers.get("accept-language", "")
        return cls(request.url.path, query, Speech(language_of(query.get("lang", ""), accepted)))

    @property
    def is_dark(self) -> bool:
        """Whether the page is dark, which it is unless asked otherwise."""
        return self.query.get("theme") != "light"

    def get(self, key: str) -> str:
        """A choice in the address; "" where there is none."""
        return self.query.get(key, "")

    def to(self, path: str, **query: str) -> str:
        """Address of another page, language and brightness kept."""
        kept = {key: self.query[key] for key in LASTING if key in self.query}
        told = urlencode({key: value for key, value in (kept | query).items() if value})
        return quote(path) + (f"?{told}" if told else "")

    def here(self, **changes: str) -> str:
        """Address of this page with some choices changed; "" takes one away."""
        return self.to(self.path, **{**self.query, **changes})
