"""Arrays in, arrays out: the maths of the model with no framework above jax.numpy.

Shape letters, here and everywhere: B batch, T query, S key, N query heads, K key-value heads, G query heads a
key-value head, H head width, D model width, F feed-forward width, V vocabulary, I image tiles of a row,
P patches of a tile, E vision width, Q image tokens of a tile, L layers, C colour channels.
"""
