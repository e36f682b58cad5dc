"""A benchmark suite: how long a product of square matrices takes."""

import statistics
import time
from dataclasses import dataclass

import torch

import mtplug

MTPLUG_API = {"benchmarks": 1}


@dataclass
class ProductsConfig:
    """Square matrix products by size."""

    sizes: tuple[int, ...] = (64, 256)
    """rows of the matrices"""
    rounds: int = 7
    """timed products of each size; the median counts"""


class Products:
    def __init__(self, config: ProductsConfig):
        self.config = config

    def run(self):
        return [{"size": size, "microseconds": self._time(size)} for size in self.config.sizes]

    def _time(self, size: int) -> float:
        matrix, seconds = torch.randn(size, size), []
        for _ in range(self.config.rounds + 1):  # the first, which warms up, is not counted
            started = time.perf_counter()
            matrix @ matrix
            seconds.append(time.perf_counter() - started)
        return round(1e6 * statistics.median(seconds[1:]), 1)


@mtplug.hookimpl
def register_benchmarks(register):
    register("NAME", Products, ProductsConfig)
