"""Static shapes by buckets: a prompt is padded to the next size, so that few shapes are ever compiled."""

from smoljax.errors import UsageError

PROMPT_BUCKETS = (
    32,
    64,
    128,
    192,
    256,
    384,
    512,
    768,
    1024,
    1280,
    1536,
    2048,
    3072,
    4096,
    6144,
    8192,
    12288,
    16384,
)
NEW_TOKEN_BUCKETS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def round_up(size: int, buckets: tuple[int, ...]) -> int:
    """The smallest bucket that holds `size`.

    Raises:
      UsageError: no bucket does.
    """
    for bucket in buckets:
        if size <= bucket:
            return bucket
    raise UsageError(f"{size} tokens are more than the largest bucket of {buckets[-1]}")
