"""What comes from others is pinned, known by its licence, and no more than is needed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.licences import ROOT, installed, licence_of, licences, needed, pins, plain

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
ON_THE_LINE = [*PROJECT["dependencies"], *EXTRAS["dashboard"]]
UNPINNED = {"gpu"}  # extras for machines that the pins were not tried on: ranges in pyproject.toml
OF_THE_ENVIRONMENT = {"setuptools", "pip"}  # they come with Python's own venv
UNWANTED = re.compile(r"A?GPL|General Public|SSPL|Business Source|Proprietary|Commons Clause", re.I)
ACCEPTED = {
    "docutils": "its library is in the public domain or BSD; the GPL is of an editor's mode in it",
}


def wanted() -> list[str]:
    """Every requirement of the project, of all extras that are pinned."""
    extras = [text for name, texts in EXTRAS.items() if name not in UNPINNED for text in texts]
    return [*PROJECT["dependencies"], *extras]


@pytest.mark.parametrize("text", wanted(), ids=lambda text: Requirement(text).name)
def test_every_dependency_is_pinned_within_its_range(text: str) -> None:
    """What pyproject asks for has one version in the constraints, and it is in the range."""
    one = Requirement(text)
    assert plain(one.name) in pins()
    assert one.specifier.contains(pins()[plain(one.name)], prereleases=True)


def test_what_dependencies_bring_is_pinned_too() -> None:
    """Nothing that is installed for the project may change its version by itself."""
    assert needed(wanted()) - set(pins()) == OF_THE_ENVIRONMENT & needed(wanted())


def test_the_pinned_versions_are_those_tested() -> None:
    """What runs here is what the constraints say."""
    here = installed()
    differ = {
        name: (version, here[name].version)
        for name, version in pins().items()
        if name in here and here[name].version.partition("+")[0] != version
    }
    assert differ == {}


def test_every_pin_has_its_licence_listed() -> None:
    """configs/licences.txt names each pinned package, as its metadata does: make audit."""
    listed, here = licences(), installed()
    assert set(listed) == set(pins())
    assert {n: licence_of(here[n]) for n in listed if n in here} == {
        n: listed[n] for n in listed if n in here
    }


def test_a_line_ships_nothing_that_binds_its_owner() -> None:
    """What a line runs on is under licences that ask for no more than to be named."""
    listed = licences()
    unwanted = {name for name in needed(ON_THE_LINE) if UNWANTED.search(listed.get(name, ""))}
    assert unwanted == set(ACCEPTED)


def test_what_is_imported_is_asked_for() -> None:
    """Every library that the code imports comes with a requirement, not by chance."""
    providers = metadata.packages_distributions()
    known = {plain(Requirement(text).name) for texts in EXTRAS.values() for text in texts}
    reached = needed(wanted()) | known
    strangers = set()
    for path in sources():
        for name in imported(path):
            if name in sys.stdlib_module_names or name in {"engines", "pipeline"}:
                continue
            if name in providers and not {plain(one) for one in providers[name]} & reached:
                strangers.add(f"{path.relative_to(ROOT)}: {name}")
    assert strangers == set()


def sources() -> list[Path]:
    """Every file of ours that a line may run."""
    return [*Path(ROOT / "engines").rglob("*.py"), *Path(ROOT / "pipeline").rglob("*.py")]


def imported(path: Path) -> set[str]:
    """Top-level names that a file imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


def test_nothing_is_unpickled_or_run_from_data() -> None:
    """No code of ours loads pickles, evaluates text or asks a shell."""
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and is_harmful(node)
    ]
    assert found == []
    assert not [path.name for path in sources() if imported(path) & {"pickle", "marshal", "shelve"}]


@pytest.mark.parametrize(
    ("call", "harmful"),
    [
        ("eval(text)", True),
        ("os.system(text)", True),
        ("run(text, shell=True)", True),
        ("yaml.load(text)", True),
        ("torch.load(path)", True),
        ("torch.load(path, weights_only=True)", False),
        ("numpy.load(path, allow_pickle=True)", True),
        ("method.eval()", False),
        ("yaml.safe_load(text)", False),
    ],
)
def test_what_is_harmful_is_known(call: str, harmful: bool) -> None:
    """The look above sees what it looks for."""
    node = ast.parse(call, mode="eval").body
    assert isinstance(node, ast.Call)
    assert is_harmful(node) == harmful


def is_harmful(call: ast.Call) -> bool:
    """Whether a call may run what it is given."""
    name = ast.unparse(call.func)
    said = {word.arg: ast.unparse(word.value) for word in call.keywords}
    if name.endswith(".load") and name.startswith("torch"):
        return said.get("weights_only") != "True"
    harmful = {"eval", "exec", "os.system", "os.popen", "yaml.load", "yaml.unsafe_load"}
    return name in harmful or said.get("shell") == "True" or said.get("allow_pickle") == "True"
