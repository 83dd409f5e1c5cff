"""Print the commands of the README, one fenced block a file, for the CI to run.

Every ```bash and ```python block is taken, in order, except those right after a line `<!-- needs network -->`.
"""

import re
import sys
from pathlib import Path


BLOCK = re.compile(r"(?P<mark><!-- needs network -->\s*)?^```(?P<kind>bash|python)\n(?P<body>.*?)^```", re.M | re.S)


def main() -> None:
    readme, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    number = 0
    for block in BLOCK.finditer(readme.read_text(encoding="utf-8")):
        if block["mark"]:
            continue
        suffix = {"bash": "sh", "python": "py"}[block["kind"]]
        (out / f"{number:02d}.{suffix}").write_text(block["body"], encoding="utf-8")
        number += 1


if __name__ == "__main__":
    main()
