"""The files for contributors agree with the repository."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

import tops_engine

ROOT = Path(__file__).parents[2]
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
IGNORED = {line.strip().strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}


def folders(parent: Path) -> set[str]:
    """Return the folders below ``parent`` that hold a file other than compiled Python."""
    found = set()
    for folder in parent.iterdir():
        if not folder.is_dir() or folder.name.startswith((".", "_")) or folder.name in IGNORED:
            continue
        if any(path.is_file() and path.suffix != ".pyc" for path in folder.rglob("*")):
            found.add(folder.relative_to(ROOT).as_posix())
    return found


def test_the_map_names_every_folder_and_no_other() -> None:
    section = CONTRIBUTING.split("## Map of the repository")[1].split("\n## ")[0]
    named = re.findall(r"^\| `([\w/]+)` \| .+ \|$", section, flags=re.MULTILINE)
    there = folders(ROOT) - {"integrations"} | folders(ROOT / "tops_engine") | folders(ROOT / "integrations")
    assert len(named) == len(set(named))
    assert {name for name in there if not name.endswith(".egg-info")} == set(named)


def test_every_file_that_the_recipes_name_is_there() -> None:
    paths = re.findall(
        r"`((?:tops_engine|nodes|tests|docs|tools|web|workflows)/[\w./]+\.(?:py|md|json))`", CONTRIBUTING
    )
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).is_file()] == []


def test_every_make_target_that_the_recipes_name_is_there() -> None:
    targets = set(re.findall(r"(?:`|^)make ([a-z-]+)", CONTRIBUTING, flags=re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"test", "docs"} <= targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)] == []


def test_the_changelog_and_the_citation_name_the_current_version() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\]", changelog, flags=re.MULTILINE)
    assert headings[:2] == ["Unreleased", tops_engine.__version__]
    assert all(f"\n[{heading}]: https://" in changelog for heading in headings)
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == tops_engine.__version__


def test_pre_commit_formats_with_the_ruff_of_the_tests() -> None:
    (pinned,) = re.findall(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    repos = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    (revision,) = [repo["rev"] for repo in repos if repo["repo"].endswith("ruff-pre-commit")]
    assert revision == f"v{pinned}"


def test_continuous_integration_runs_targets_that_exist_on_the_supported_pythons() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    commands = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    targets = {target for command in commands for target in re.findall(r"^make ([\w-]+)", command)}
    makefile = (ROOT / "Makefile").read_text()
    assert {"lint", "pytest", "docs"} <= targets
    assert [target for target in targets if not re.search(rf"^{target}:", makefile, flags=re.MULTILINE)] == []
    assert workflow["jobs"]["test"]["strategy"]["matrix"]["python-version"] == ["3.11", "3.12", "3.13"]


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda path: path.name
)
def test_issue_forms_have_what_github_demands(path: Path) -> None:
    form = yaml.safe_load(path.read_text())
    if path.name == "config.yml":
        assert all(set(link) == {"name", "url", "about"} for link in form["contact_links"])
        return
    assert {"name", "description", "body"} <= set(form)
    fields = [element for element in form["body"] if element["type"] != "markdown"]
    assert len({element["id"] for element in fields}) == len(fields)
    assert all(element["attributes"]["label"] for element in fields)


def test_all_addresses_of_the_project_name_one_repository() -> None:
    urls = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]
    repository = urls["Repository"]
    assert all(url.startswith(repository) for url in urls.values())
    for path in [*ROOT.glob("*.md"), ROOT / "CITATION.cff", *(ROOT / "docs").glob("*.md")]:
        named = re.findall(r"https://github\.com/[\w.-]+/tops[\w.-]*", path.read_text(encoding="utf-8"))
        assert {url.removesuffix(".git") for url in named} <= {repository}, path
