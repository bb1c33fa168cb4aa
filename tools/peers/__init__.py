"""What the library is measured against: other people's way of doing the same, for benchmarks alone."""
