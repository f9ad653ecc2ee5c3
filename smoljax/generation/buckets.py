"""Static shapes by buckets: a prompt is padded to the next size, so that few shapes are ever compiled."""

from smoljax.errors import UsageError

#: Finer than powers of two: a padded place costs as much as a real one.
PROMPT_BUCKETS = (
    *range(32, 160, 32),
    *range(160, 384, 64),
    *range(384, 1280, 128),
    *(1280, 1536, 1792, 2048, 2560, 3072, 4096, 5120, 6144, 8192, 12288, 16384),
)
NEW_TOKEN_BUCKETS = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)


def round_up(size: int, buckets: tuple[int, ...], most: int) -> int:
    """The smallest bucket that holds `size`; `most` is the last one.

    Raises:
      UsageError: `size` is more than `most`.
    """
    if size > most:
        raise UsageError(f"{size} tokens are more than the {most} that fit")
    return min((bucket for bucket in buckets if size <= bucket <= most), default=most)
