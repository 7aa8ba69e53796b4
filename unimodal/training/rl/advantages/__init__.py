"""Advantages: how much better an answer was than others of its prompt, or than a value said. One file each."""
