"""Train an image tokenizer or a decoder: `python train.py fit --config configs/run/....yaml`."""

from unimodal.training.cli import main

if __name__ == "__main__":
    main()
