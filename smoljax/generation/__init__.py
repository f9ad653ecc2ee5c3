"""From a processed prompt to tokens: shape buckets, prefill, the decode loop, streaming."""
