"""An evaluation run: plan, shards, batches, outcomes, results."""
