"""Critical learning rates predicted from a few short runs."""
