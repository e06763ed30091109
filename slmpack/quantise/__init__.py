"""What is done to weights before they are built: calibration, scale search, AWQ, GPTQ, mixed precision.

`prepare` decides and runs what a recipe asks for. Imports `checkpoint` and `machine`; knows no builder.
"""
