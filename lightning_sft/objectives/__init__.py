"""Fine-tuning objectives behind one contract: token scores in, per-token losses out."""

from lightning_sft.objectives.adaptive import Adaptive
from lightning_sft.objectives.asft import ASFT
from lightning_sft.objectives.base import Objective, RunFacts
from lightning_sft.objectives.composite import Composite
from lightning_sft.objectives.deft import DEFT
from lightning_sft.objectives.dft import DFT
from lightning_sft.objectives.distill import Distill
from lightning_sft.objectives.eaft import EAFT
from lightning_sft.objectives.focal import Focal
from lightning_sft.objectives.gem import GEM
from lightning_sft.objectives.histogram import load_histogram, save_histogram
from lightning_sft.objectives.huber import Huber
from lightning_sft.objectives.iwsft import IWSFT
from lightning_sft.objectives.kl_anchor import KLAnchor
from lightning_sft.objectives.label_smoothing import LabelSmoothing
from lightning_sft.objectives.log_one_minus_p import LogOneMinusP
from lightning_sft.objectives.nll import NLL
from lightning_sft.objectives.per_source import PerSource
from lightning_sft.objectives.power import Convexity, PowerFamily
from lightning_sft.objectives.profit import ProFiT
from lightning_sft.objectives.psft import PSFT
from lightning_sft.objectives.rho1 import Rho1
from lightning_sft.objectives.runner_up_margin import RunnerUpMargin
from lightning_sft.objectives.scheduled import Scheduled
from lightning_sft.objectives.special_tokens import SpecialTokens
from lightning_sft.objectives.tail_sft import TailSFT
from lightning_sft.objectives.talr import TALR
from lightning_sft.objectives.thresholded import Thresholded
from lightning_sft.objectives.trust_region import TrustRegion
from lightning_sft.objectives.weighted_sum import WeightedSum
from lightning_sft.objectives.z_loss import ZLoss

__all__ = [
    "ASFT",
    "DEFT",
    "DFT",
    "EAFT",
    "GEM",
    "IWSFT",
    "NLL",
    "PSFT",
    "TALR",
    "Adaptive",
    "Composite",
    "Convexity",
    "Distill",
    "Focal",
    "Huber",
    "KLAnchor",
    "LabelSmoothing",
    "LogOneMinusP",
    "Objective",
    "PerSource",
    "PowerFamily",
    "ProFiT",
    "Rho1",
    "RunFacts",
    "RunnerUpMargin",
    "Scheduled",
    "SpecialTokens",
    "TailSFT",
    "Thresholded",
    "TrustRegion",
    "WeightedSum",
    "ZLoss",
    "load_histogram",
    "save_histogram",
]
