"""What is done to weights before they are built: calibration, scale search, AWQ, GPTQ, mixed precision.

`prepare` decides and runs what a recipe asks for. Imports `checkpoint` and `machine`; knows no builder.

Door: prepare.prepare, prepare.preparation_digest, plan.Plan, scale_search.search_rows,
zero_point_search.search_zero_points, lossless.exact_rows
"""
