"""Build: a package for a target, by ONNX Runtime GenAI's builder or, for what that does not know, by optimum.

`build` is the stage, `select` chooses the `Builder`; `genai` and `optimum` do not know each other.

Imports `source`, `quantise`, `checkpoint` and `machine`; knows nothing of MLflow.

Door: build.build_package, build.package_digest, select.recipe_digest, open_package.open_package
"""
