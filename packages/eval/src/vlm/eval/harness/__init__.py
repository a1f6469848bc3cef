"""Our models inside other evaluation harnesses: lmms-eval and VLMEvalKit."""
