/* Memory for caches: page-aligned, zeroed, on huge pages where the system has them. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, madvise() */
#include "internal.h"

#include <errno.h>
#include <sys/mman.h>

/* Common size of a huge page; where the system's is another, alignment is all that is lost. */
static const uint64_t HUGE_PAGE_BYTES = (uint64_t)2 << 20;

/* map_bytes of fresh memory that begins at a huge page; NULL if there is none. */
static char *map_aligned(uint64_t map_bytes)
{
    /* Room to move the start: a mapping is aligned to an ordinary page only. */
    char *map = mmap(NULL, map_bytes + HUGE_PAGE_BYTES, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        return NULL;
    }
    uint64_t skip = (HUGE_PAGE_BYTES - (uintptr_t)map % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    if (skip > 0) {
        munmap(map, skip);
    }
    munmap(map + skip + map_bytes, HUGE_PAGE_BYTES - skip);
    return map + skip;
}

/* Asks for huge pages if the caller wants them; true if the system takes the wish. */
static bool advise(char *map, uint64_t map_bytes, uint32_t flags)
{
#ifdef MADV_HUGEPAGE
    return (flags & PKV_MEMORY_HUGE_PAGES) != 0 && madvise(map, map_bytes, MADV_HUGEPAGE) == 0;
#else
    (void)map;
    (void)map_bytes;
    (void)flags;
    return false;
#endif
}

pkv_status pkv_memory_alloc(pkv_memory *out, uint64_t size_bytes, uint32_t flags)
{
    PKV_I_TRY(pkv_i_check_struct(out, sizeof *out, NULL));
    if ((flags & ~(uint32_t)PKV_MEMORY_HUGE_PAGES) != 0) {
        return PKV_E_UNSUPPORTED;
    }
    if (size_bytes == 0) {
        return PKV_E_INVALID;
    }
    if (size_bytes > PTRDIFF_MAX - 2 * HUGE_PAGE_BYTES) {
        return PKV_E_NO_MEMORY;
    }
    const int      caller_errno = errno; /* the library leaves it alone */
    const uint64_t map_bytes =
        (size_bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    char *map = map_aligned(map_bytes);
    bool  huge = map != NULL && advise(map, map_bytes, flags);
    errno = caller_errno;
    if (map == NULL) {
        return PKV_E_NO_MEMORY;
    }
    out->data = map;
    out->size_bytes = map_bytes;
    out->map_bytes = map_bytes;
    out->flags = huge ? PKV_MEMORY_HUGE_PAGES : 0;
    out->reserved = 0;
    return PKV_OK;
}

void pkv_memory_free(pkv_memory *memory)
{
    if (memory == NULL || memory->data == NULL) {
        return;
    }
    const int caller_errno = errno;
    munmap(memory->data, memory->map_bytes);
    errno = caller_errno;
    memory->data = NULL;
    memory->size_bytes = 0;
    memory->map_bytes = 0;
    memory->flags = 0;
}
