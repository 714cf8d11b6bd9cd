/* Copies for AArch64 with NEON: 16-byte vectors, stored in non-temporal pairs. */
#if defined(__aarch64__)

#include <string.h>

#define PKV_I_TARGET
#define PKV_I_PREFETCH(address) __builtin_prefetch(address, 1, 0)

#include "kernels.h"

enum { LINE_BYTES = 64 };

/*
 * One line.  In assembly, since compilers have no portable word for stnp, and
 * because ldp and stnp move bytes in memory order on either endianness.
 */
static inline void stream_line(char *dst, const char *src)
{
    __asm__ volatile("ldp  q0, q1, [%1]\n\t"
                     "ldp  q2, q3, [%1, #32]\n\t"
                     "stnp q0, q1, [%0]\n\t"
                     "stnp q2, q3, [%0, #32]"
                     :
                     : "r"(dst), "r"(src)
                     : "v0", "v1", "v2", "v3", "memory");
}

/* Whole lines with the non-temporal hint, the ragged ends of the row without. */
static void stream_row(char *dst, const char *src, size_t bytes)
{
    size_t head = (size_t)(-(uintptr_t)dst % LINE_BYTES);
    if (head > bytes) {
        head = bytes;
    }
    memcpy(dst, src, head);
    dst += head;
    src += head;
    bytes -= head;
    for (; bytes >= LINE_BYTES; bytes -= LINE_BYTES, dst += LINE_BYTES, src += LINE_BYTES) {
        stream_line(dst, src);
    }
    memcpy(dst, src, bytes);
}

#include "copy_stream.h"

void pkv_i_copy_runs_neon(const pkv_i_run *runs, size_t n_runs, bool stream)
{
    if (stream) {
        stream_runs(runs, n_runs);
    } else {
        pkv_i_copy_runs_c(runs, n_runs, false); /* libc's memcpy is the cached copy to beat */
    }
}

/* As sfence does on x86-64: the copies come before any store that follows. */
void pkv_i_finish_neon(void)
{
    __asm__ volatile("dmb ishst" ::: "memory");
}

#else
typedef int pkv_i_no_neon;
#endif
