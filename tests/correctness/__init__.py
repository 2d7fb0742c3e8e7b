"""What correctness_benchmark.py runs: the ten tests, the modes, and how results are judged."""
