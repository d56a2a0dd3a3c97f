"""The command line: Lightning's verbs through LightningCLI, our own verbs in front of it."""
