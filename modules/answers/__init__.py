"""How an answer in words is judged: the metrics of the benchmarks, and tasks made of them."""
