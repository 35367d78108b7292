"""Experiments: one flat YAML file each, read through `importlib.resources.files("observatory.experiments")`."""
