/* Memory functions of a caller that counts, and can give nothing or a crooked block. */
#ifndef PAGEDKV_TESTS_HOOKS_H
#define PAGEDKV_TESTS_HOOKS_H

#include "support.h"

typedef struct hooks {
    int    n_alloc, n_release;
    bool   give_none, give_crooked;
    size_t bytes;
    void  *memory;
} hooks;

static inline void *hook_alloc(void *user, size_t bytes, size_t align)
{
    hooks *h = user;
    assert_int_equal(align, 64);
    h->n_alloc++;
    h->bytes = bytes;
    h->memory = h->give_none ? NULL : aligned_alloc(align, bytes + 64);
    if (h->give_crooked) {
        h->memory = (char *)h->memory + 8;
    }
    return h->memory;
}

static inline void hook_release(void *user, void *memory, size_t bytes)
{
    hooks *h = user;
    h->n_release++;
    assert_true(memory == h->memory && bytes == h->bytes);
    free((char *)memory - (h->give_crooked ? 8 : 0));
}

#endif
