/* Memory functions: see allocator.h. */
#include "allocator.h"

#include <errno.h>
#include <stdlib.h>

static void *default_alloc(void *user, size_t bytes, size_t align)
{
    const int caller_errno = errno; /* the library leaves it alone */
    void     *memory = aligned_alloc(align, bytes);
    (void)user;
    errno = caller_errno;
    return memory;
}

static void default_release(void *user, void *memory, size_t bytes)
{
    const int caller_errno = errno;
    (void)user;
    (void)bytes;
    free(memory);
    errno = caller_errno;
}

pkv_status pkv_i_take_memory(const pkv_allocator *given, uint64_t bytes, pkv_allocator *used,
                             void **memory, pkv_error *err)
{
    *used = (pkv_allocator){sizeof *used, default_alloc, default_release, NULL};
    if (given != NULL) {
        PKV_I_TRY(pkv_i_check_struct(given, sizeof *given, err));
        *used = *given;
    }
    if (used->alloc == NULL || used->release == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "a function of the allocator is NULL");
    }
    *memory = bytes > SIZE_MAX ? NULL
                               : used->alloc(used->user, (size_t)bytes, PKV_I_ALIGN_BYTES);
    return *memory != NULL ? PKV_OK
                           : pkv_i_fail(err, PKV_E_NO_MEMORY, "the allocator has no memory");
}
