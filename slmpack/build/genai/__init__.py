"""ONNX Runtime GenAI's model builder, with weights quantised while they are written, and its known bugs patched."""
