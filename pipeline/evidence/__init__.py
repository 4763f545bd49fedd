"""What a lot's verdicts were, chained by hashes, so that a change is found and named."""
