"""`python -m unimodal`: the command `unimodal`."""

from unimodal.cli import main

if __name__ == "__main__":
    main()
