"""Log: the package with its wrapper, signature, requirements and provenance as a logged model; and reading it back.

What MLflow is and what is stored there. Imports `build`, `source` and below; knows no proof and no version.

Door: log.log_model, log.logged_digest, restore.find_logged, read_back.read_back, transfer.receive_snapshot,
mlflow_server.require_registry, mlflow_server.check_name, tags.facts_in, tags.version_tags
"""
