/* Memory for caches: page-aligned, zeroed, on huge pages where the system has them. */
#define _DEFAULT_SOURCE /* MAP_ANONYMOUS, madvise() */
#include "internal.h"

#include <sys/mman.h>

/* Common size of a huge page; where the system's is another, alignment is all that is lost. */
static const uint64_t HUGE_PAGE_BYTES = (uint64_t)2 << 20;

pkv_status pkv_memory_alloc(pkv_memory *out, uint64_t size_bytes, uint32_t flags)
{
    PKV_I_TRY(pkv_i_check_struct(out, sizeof *out, NULL));
    if ((flags & ~(uint32_t)PKV_MEMORY_HUGE_PAGES) != 0) {
        return PKV_E_UNSUPPORTED;
    }
    if (size_bytes == 0) {
        return PKV_E_INVALID;
    }
    uint64_t map_bytes = 0;
    /* Room to begin at a huge page: a mapping is aligned to an ordinary one only. */
    if (PKV_I_ADD(size_bytes, 2 * HUGE_PAGE_BYTES, &map_bytes) || map_bytes > PTRDIFF_MAX) {
        return PKV_E_NO_MEMORY;
    }
    char *map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) {
        return PKV_E_NO_MEMORY;
    }
    uint64_t skip = (HUGE_PAGE_BYTES - (uintptr_t)map % HUGE_PAGE_BYTES) % HUGE_PAGE_BYTES;
    uint64_t whole = (size_bytes + HUGE_PAGE_BYTES - 1) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
    uint32_t given = 0;
    /* Hand the unused ends back, so that the mapping is exactly the usable bytes. */
    if (skip > 0) {
        munmap(map, skip);
    }
    if (map_bytes > skip + whole) {
        munmap(map + skip + whole, map_bytes - skip - whole);
    }
#ifdef MADV_HUGEPAGE
    if ((flags & PKV_MEMORY_HUGE_PAGES) != 0 &&
        madvise(map + skip, whole, MADV_HUGEPAGE) == 0) {
        given = PKV_MEMORY_HUGE_PAGES;
    }
    if ((flags & PKV_MEMORY_HUGE_PAGES) == 0) {
        /* Refused by systems without huge pages, which comes to the same. */
        (void)madvise(map + skip, whole, MADV_NOHUGEPAGE);
    }
#endif
    out->data = map + skip;
    out->size_bytes = whole;
    out->map_bytes = whole;
    out->flags = given;
    out->reserved = 0;
    return PKV_OK;
}

void pkv_memory_free(pkv_memory *memory)
{
    if (memory == NULL || memory->data == NULL) {
        return;
    }
    munmap(memory->data, memory->map_bytes);
    memory->data = NULL;
    memory->size_bytes = 0;
    memory->map_bytes = 0;
    memory->flags = 0;
}
