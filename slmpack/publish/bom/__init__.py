"""Bill of materials: what a version is made of, as a CycloneDX ML-BOM in the run that made it."""
