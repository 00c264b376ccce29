"""The parts of `benchmarks.serving`: the client, the contenders, the inputs, the sums."""
