"""pagedkv inside engines that others wrote; each module needs its engine and nothing else does."""
