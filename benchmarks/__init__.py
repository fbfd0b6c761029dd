"""Measurements of this project against a stock ipykernel, on the machine that runs them. ``python -m benchmarks``."""
