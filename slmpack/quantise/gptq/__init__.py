"""GPTQ: each column compensates the rounding error of those before it."""
