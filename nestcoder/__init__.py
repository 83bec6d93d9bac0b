"""nestcoder: harvest activations once, train nested-prefix transcoders from disk, measure them on held-out text.

    import nestcoder

    rows = nestcoder.open_cache("runs/gpt2-stdlib/layer08/cache").split("held_out").rows(slice(0, 512))
    transcoder = nestcoder.load_transcoder("runs/gpt2-stdlib/layer08/transcoder/main")
    features = transcoder.encode(rows.source.float())

docs/python.md has the rest: the three stages as functions, and their settings.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nestcoder.face import (
        CacheReader,
        CrossLayerTranscoder,
        Evidence,
        NestcoderError,
        PipelineSettings,
        SAEBenchAdapter,
        Transcoder,
        feature_page,
        load_cross_layer,
        load_features,
        load_settings,
        load_transcoder,
        open_cache,
        run_evaluate,
        run_evaluate_joint,
        run_export,
        run_features,
        run_finetune,
        run_harvest,
        run_harvest_probe,
        run_import,
        run_together,
        run_train,
        splice,
        transformer_lens_hooks,
        write_cache,
    )

__version__ = "0.1.0"

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


def __getattr__(name: str) -> object:
    """The names of ``nestcoder.face`` are imported when they are first used, so that ``import nestcoder`` is fast."""
    if name in __all__:
        from nestcoder import face

        return getattr(face, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
