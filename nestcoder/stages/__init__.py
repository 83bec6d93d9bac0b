"""The stages as functions of the settings: what the commands call, and what Python code may call.

    settings = nestcoder.load_settings("pipeline.yaml", ["train.steps=500"])
    nestcoder.run_harvest(settings, [8])
    nestcoder.run_train(settings, [8])
    metrics = nestcoder.run_evaluate(settings, [8])[8]

They write where the commands write (``common/run_layout.py``), go on where an earlier call or command was stopped, and
are silent unless they are given a ``common.progress.Progress``. Under torchrun every process calls them alike.
"""
