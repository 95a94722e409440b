"""The demo, as `make demo` runs it: `worker-ctl demo` in the project's folder."""

import os
from pathlib import Path

from millhand_fleet.ctl.demo import demo

if __name__ == "__main__":
    os.chdir(Path(__file__).resolve().parent.parent)
    demo(prog_name="demo")
