"""Benchmarks of the bridge against a bare gRPC server and real peers: ``python -m benchmarks``."""
