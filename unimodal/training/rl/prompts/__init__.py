"""Prompts of a run: what is asked, how it is answered, and what rewards need to know. One file each."""
