import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))  # tiny_bench, which child processes import as well
