"""What the command line answers before torch is imported: short words, help, mistakes in settings."""
