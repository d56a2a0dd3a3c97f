"""Near-synonym probes: contexts whose correct next token has a competitor that means nearly the same."""

from lightning_sft.probes.encode import EncodedProbes, encode_probes
from lightning_sft.probes.files import library, load_probes, save_probes
from lightning_sft.probes.probe import Probe

__all__ = ["EncodedProbes", "Probe", "encode_probes", "library", "load_probes", "save_probes"]
