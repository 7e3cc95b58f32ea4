import sys
from pathlib import Path

# Child processes take over the import path and find what they are asked to build: victims, tiny_bench.
sys.path += [str(Path(__file__).parent), str(Path(__file__).parents[1] / "evaluation")]
