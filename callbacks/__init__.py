"""Lightning callbacks, one short class per instrument; import them as `observatory.callbacks`."""

if __name__ == "callbacks":  # a second copy of every class would make isinstance fail
    raise ImportError("import observatory.callbacks instead of callbacks")
