"""Experiments, one flat YAML file each; read with `importlib.resources.files("observatory.experiments")`."""
