/* Copies for x86-64 with AVX2: 32-byte streaming stores. */
#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#define PKV_I_TARGET __attribute__((target("avx2")))
#define PKV_I_PREFETCH(address) _mm_prefetch(address, _MM_HINT_NTA)

#include "kernels.h"

/* Whole lines past the cache, the ragged ends of the row through it. */
PKV_I_TARGET static inline void stream_row(char *dst, const char *src, size_t bytes)
{
    size_t head = (size_t)(-(uintptr_t)dst % 64);
    if (head > bytes) {
        head = bytes;
    }
    memcpy(dst, src, head);
    dst += head;
    src += head;
    bytes -= head;
    for (; bytes >= 64; bytes -= 64, dst += 64, src += 64) {
        __m256i a = _mm256_loadu_si256((const __m256i *)src);
        __m256i b = _mm256_loadu_si256((const __m256i *)(src + 32));
        _mm256_stream_si256((__m256i *)dst, a);
        _mm256_stream_si256((__m256i *)(dst + 32), b);
    }
    memcpy(dst, src, bytes);
}

#include "copy_stream.h"

PKV_I_TARGET void pkv_i_copy_runs_avx2(const pkv_i_run *runs, size_t n_runs, bool stream)
{
    if (stream) {
        stream_runs(runs, n_runs);
    } else {
        pkv_i_copy_runs_c(runs, n_runs, false); /* libc's memcpy is the cached copy to beat */
    }
}

void pkv_i_finish_sse(void)
{
    _mm_sfence();
}

#else
typedef int pkv_i_no_avx2;
#endif
