/* Copies for x86-64 with AVX-512: one store a line, masked at the ends of a row. */
#if defined(__x86_64__)

#include <immintrin.h>

#define PKV_I_TARGET __attribute__((target("avx512f,avx512bw,avx512vl")))
#define PKV_I_PREFETCH(address) _mm_prefetch(address, _MM_HINT_NTA)

#include "kernels.h"

/* Fewer than 64 bytes, through the cache; masked lanes touch no memory. */
PKV_I_TARGET static inline void copy_part(char *dst, const char *src, size_t bytes)
{
    __mmask64 mask = ((__mmask64)1 << bytes) - 1;
    _mm512_mask_storeu_epi8(dst, mask, _mm512_maskz_loadu_epi8(mask, src));
}

PKV_I_TARGET static inline void stream_row(char *dst, const char *src, size_t bytes)
{
    size_t head = (size_t)(-(uintptr_t)dst % 64);
    if (head > 0) {
        head = head < bytes ? head : bytes;
        copy_part(dst, src, head);
        dst += head;
        src += head;
        bytes -= head;
    }
    for (; bytes >= 256; bytes -= 256, dst += 256, src += 256) {
        __m512i a = _mm512_loadu_si512(src);
        __m512i b = _mm512_loadu_si512(src + 64);
        __m512i c = _mm512_loadu_si512(src + 128);
        __m512i d = _mm512_loadu_si512(src + 192);
        _mm512_stream_si512((__m512i *)dst, a);
        _mm512_stream_si512((__m512i *)(dst + 64), b);
        _mm512_stream_si512((__m512i *)(dst + 128), c);
        _mm512_stream_si512((__m512i *)(dst + 192), d);
    }
    for (; bytes >= 64; bytes -= 64, dst += 64, src += 64) {
        _mm512_stream_si512((__m512i *)dst, _mm512_loadu_si512(src));
    }
    if (bytes > 0) {
        copy_part(dst, src, bytes);
    }
}

#include "copy_stream.h"

PKV_I_TARGET void pkv_i_copy_runs_avx512(const pkv_i_run *runs, size_t n_runs, bool stream)
{
    if (stream) {
        stream_runs(runs, n_runs);
    } else {
        pkv_i_copy_runs_c(runs, n_runs, false); /* libc's memcpy is the cached copy to beat */
    }
}

#else
typedef int pkv_i_no_avx512;
#endif
