"""The public names of ``import nestcoder``; ``nestcoder/__init__.py`` imports this when a name is first used.

The names are the same in a checkout and in an installed wheel, whose stages are below ``nestcoder``
(``build_hook.py``). docs/python.md shows how to use each.
"""

from cache.open import open_cache
from cache.reader import CacheReader
from common.errors import NestcoderError
from evaluate.features.evidence import Evidence
from evaluate.features.evidence import read_evidence as load_features
from evaluate.features.text.page import feature_page
from evaluate.spliced.saebench import SAEBenchAdapter
from evaluate.spliced.splice import splice
from evaluate.spliced.transformer_lens import transformer_lens_hooks
from harvest.elsewhere.write import write_cache
from nestcoder.config import PipelineSettings, load_settings
from nestcoder.stages.evaluate import run_evaluate, run_features
from nestcoder.stages.harvest import run_harvest, run_harvest_probe
from nestcoder.stages.interop import run_export, run_import
from nestcoder.stages.joint import run_evaluate_joint
from nestcoder.stages.model import run_finetune, run_together
from nestcoder.stages.train import run_train
from transcoder.cross_layer import CrossLayerTranscoder
from transcoder.formats.cross_layer import load_cross_layer
from transcoder.formats.native import load_transcoder
from transcoder.transcoder import Transcoder

__all__ = [
    "CacheReader",
    "CrossLayerTranscoder",
    "Evidence",
    "NestcoderError",
    "PipelineSettings",
    "SAEBenchAdapter",
    "Transcoder",
    "feature_page",
    "load_cross_layer",
    "load_features",
    "load_settings",
    "load_transcoder",
    "open_cache",
    "run_evaluate",
    "run_evaluate_joint",
    "run_export",
    "run_features",
    "run_finetune",
    "run_harvest",
    "run_harvest_probe",
    "run_import",
    "run_together",
    "run_train",
    "splice",
    "transformer_lens_hooks",
    "write_cache",
]
