"""Are jumps of the order parameter phantoms, does LoRA suffice, and how common is silent failure?"""
