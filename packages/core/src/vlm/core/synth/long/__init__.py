"""Long-context sets (Long-MR, Long-VQA) of any length in tokens."""
