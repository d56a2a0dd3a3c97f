"""``python -m lightning_sft``, ``lightning`` and ``lightning-sft``: one program."""

from lightning_sft.cli.entry import main

if __name__ == "__main__":
    main()
