"""`python -m benchmarks`: the benchmarks that need no data, one after the other."""

import runpy
import sys

MODULES = ("forward", "training")

if __name__ == "__main__":
    for module in MODULES:
        sys.argv = [module]
        runpy.run_module(f"benchmarks.{module}", run_name="__main__")
