"""Print the oldest dependencies that a pyproject.toml allows, as pip constraints.

Of each entry in ``project.dependencies``, and of those of the extras, the ``>=`` bound becomes an
``==`` pin; environment markers stay. Development tools, the extra ``dev``, are not pinned: the
package, not its tests, promises to run on these versions.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement


def pin(dependency: str) -> str:
    """Turn ``name>=1.2,<3; marker`` into ``name==1.2; marker``.

    :raises SystemExit: the dependency does not have exactly one ``>=`` bound.
    """
    requirement = Requirement(dependency)
    floors = [bound.version for bound in requirement.specifier if bound.operator == ">="]
    if len(floors) != 1:
        sys.exit(f"{dependency!r} needs exactly one >= bound")
    marker = f"; {requirement.marker}" if requirement.marker else ""
    return f"{requirement.name}=={floors[0]}{marker}"


def main() -> None:
    project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
    extras = project.get("optional-dependencies", {})
    optional = [each for name, extra in extras.items() if name != "dev" for each in extra]
    for dependency in [*project["dependencies"], *optional]:
        if Requirement(dependency).name != project["name"]:  # an extra may include another
            print(pin(dependency))


if __name__ == "__main__":
    main()
