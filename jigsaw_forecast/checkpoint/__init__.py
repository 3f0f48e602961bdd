"""Inference checkpoints: model.json and safetensors blocks."""
