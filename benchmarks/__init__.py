"""What performance claims are measured with. Run as ``python -m benchmarks.<name>``."""
