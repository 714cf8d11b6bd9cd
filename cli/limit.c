/*
 * Plain copies: memcpy, and streaming stores as wide as the processor has.
 * They know nothing of pages and plans, which is what makes them a limit.
 */
#include "limit.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"

#if defined(__x86_64__)
#include <immintrin.h>
#define HAVE_STREAM 1
#else
#define HAVE_STREAM 0
#endif

enum {
    LINE_BYTES = 64,
    PAGE_BYTES = 4096,
    LINES_PER_PAGE = PAGE_BYTES / LINE_BYTES,
    PAGES_AHEAD = 8,         /* page walks that a core can have under way, about */
    MIN_PART_BYTES = 32 * 1024,
    MEASURE_ROUNDS = 9
};

#if HAVE_STREAM

/* Copies whole lines; dst starts on one. */
typedef void (*copy_lines)(char *dst, const char *src, size_t n_lines);

__attribute__((target("avx512f"))) static void lines_avx512(char *dst, const char *src,
                                                            size_t n_lines)
{
    for (; n_lines >= 4; n_lines -= 4, dst += 256, src += 256) {
        __m512i a = _mm512_loadu_si512(src);
        __m512i b = _mm512_loadu_si512(src + 64);
        __m512i c = _mm512_loadu_si512(src + 128);
        __m512i d = _mm512_loadu_si512(src + 192);
        _mm512_stream_si512((void *)dst, a);
        _mm512_stream_si512((void *)(dst + 64), b);
        _mm512_stream_si512((void *)(dst + 128), c);
        _mm512_stream_si512((void *)(dst + 192), d);
    }
    for (; n_lines > 0; n_lines--, dst += 64, src += 64) {
        _mm512_stream_si512((void *)dst, _mm512_loadu_si512(src));
    }
}

__attribute__((target("avx2"))) static void lines_avx2(char *dst, const char *src, size_t n_lines)
{
    for (; n_lines > 0; n_lines--, dst += 64, src += 64) {
        __m256i a = _mm256_loadu_si256((const void *)src);
        __m256i b = _mm256_loadu_si256((const void *)(src + 32));
        _mm256_stream_si256((void *)dst, a);
        _mm256_stream_si256((void *)(dst + 32), b);
    }
}

static void lines_sse2(char *dst, const char *src, size_t n_lines)
{
    for (; n_lines > 0; n_lines--, dst += 64, src += 64) {
        for (int i = 0; i < 64; i += 16) {
            _mm_stream_si128((void *)(dst + i), _mm_loadu_si128((const void *)(src + i)));
        }
    }
}

static copy_lines widest_lines(void)
{
    if (__builtin_cpu_supports("avx512f")) {
        return lines_avx512;
    }
    return __builtin_cpu_supports("avx2") ? lines_avx2 : lines_sse2;
}

/* Starts the page walks of the destination's next pages before a store waits for them. */
static void prefetch_page(const char *dst, size_t pages_ahead)
{
    _mm_prefetch(dst + pages_ahead * PAGE_BYTES, _MM_HINT_NTA);
}

static void stream_pages(copy_lines lines, char *dst, const char *src, size_t n_lines)
{
    size_t n_pages = n_lines / LINES_PER_PAGE;

    for (size_t page = 1; page < PAGES_AHEAD && page < n_pages; page++) {
        prefetch_page(dst, page);
    }
    for (; n_pages > 0; n_pages--, dst += PAGE_BYTES, src += PAGE_BYTES) {
        if (n_pages > PAGES_AHEAD) {
            prefetch_page(dst, PAGES_AHEAD);
        }
        lines(dst, src, LINES_PER_PAGE);
    }
    lines(dst, src, n_lines % LINES_PER_PAGE);
}

static void stream(copy_lines lines, const limit_row *row, bool prefetch)
{
    char       *dst = row->dst;
    const char *src = row->src;
    size_t      head = (size_t)(-(uintptr_t)dst % LINE_BYTES);

    if (head > row->bytes) {
        head = row->bytes;
    }
    size_t n_lines = (row->bytes - head) / LINE_BYTES;
    size_t body = n_lines * LINE_BYTES;
    size_t tail = row->bytes - head - body;
    if (head > 0) {
        memcpy(dst, src, head);
    }
    if (prefetch) {
        stream_pages(lines, dst + head, src + head, n_lines);
    } else {
        lines(dst + head, src + head, n_lines);
    }
    if (tail > 0) {
        memcpy(dst + head + body, src + head + body, tail);
    }
}

#endif /* HAVE_STREAM */

static void copy_rows(int way, const limit_row *rows, size_t n)
{
#if HAVE_STREAM
    if (way != LIMIT_MEMCPY) {
        copy_lines lines = widest_lines();
        for (size_t i = 0; i < n; i++) {
            stream(lines, &rows[i], way == LIMIT_STREAM_PREFETCH);
        }
        _mm_sfence();
        return;
    }
#else
    (void)way;
#endif
    for (size_t i = 0; i < n; i++) {
        memcpy(rows[i].dst, rows[i].src, rows[i].bytes);
    }
}

const char *limit_way_name(int way)
{
    static const char *const names[LIMIT_WAYS] = {"memcpy", "stream", "stream+prefetch"};
    return way >= 0 && way < LIMIT_WAYS ? names[way] : "?";
}

int limit_way_usable(int way)
{
    return way == LIMIT_MEMCPY || (HAVE_STREAM && way > 0 && way < LIMIT_WAYS);
}

int limit_threads(size_t bytes, int threads)
{
#ifdef _OPENMP
    size_t parts = bytes / MIN_PART_BYTES;
    if (threads > 1 && parts > 1) {
        return parts < (size_t)threads ? (int)parts : threads;
    }
#else
    (void)bytes;
    (void)threads;
#endif
    return 1;
}

/* Copies the rows that start in [from, to) of all their bytes, counted on. */
static void copy_share(int way, const limit_row *rows, size_t n, size_t from, size_t to)
{
    size_t first = 0;
    size_t before = 0;

    for (; first < n && before < from; first++) {
        before += rows[first].bytes;
    }
    size_t end = first;
    for (; end < n && before < to; end++) {
        before += rows[end].bytes;
    }
    copy_rows(way, rows + first, end - first);
}

void limit_copy_rows(int way, const limit_row *rows, size_t n, int threads)
{
    size_t bytes = 0;

    for (size_t i = 0; threads > 1 && i < n; i++) {
        bytes += rows[i].bytes;
    }
    size_t parts = (size_t)limit_threads(bytes, threads);
    if (parts == 1) {
        copy_rows(way, rows, n);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for num_threads((int)parts) schedule(static, 1)
#endif
    for (size_t p = 0; p < parts; p++) {
        copy_share(way, rows, n, bytes * p / parts, bytes * (p + 1) / parts);
    }
}

void limit_copy(int way, void *dst, const void *src, size_t bytes, int threads)
{
    size_t parts = (size_t)limit_threads(bytes, threads);

    if (parts == 1) {
        copy_rows(way, &(limit_row){dst, src, bytes}, 1);
        return;
    }
    size_t part_bytes = (bytes / parts + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES;
#ifdef _OPENMP
#pragma omp parallel for num_threads((int)parts) schedule(static, 1)
#endif
    for (size_t p = 0; p < parts; p++) {
        size_t first = p * part_bytes < bytes ? p * part_bytes : bytes;
        size_t left = bytes - first;
        limit_row row = {(char *)dst + first, (const char *)src + first,
                         left < part_bytes || p + 1 == parts ? left : part_bytes};
        copy_rows(way, &row, 1);
    }
}

static int compare_ns(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a;
    int64_t y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

static size_t smallest(size_t a, size_t b)
{
    return a < b ? a : b;
}

double limit_measure(void *dst, size_t dst_bytes, const void *src, size_t src_bytes, int threads)
{
    size_t  piece = smallest((size_t)64 << 20, smallest(dst_bytes, src_bytes));
    size_t  n_dst = piece > 0 ? dst_bytes / piece : 0;
    size_t  n_src = piece > 0 ? src_bytes / piece : 0;
    size_t  step = 0;
    int64_t ns[LIMIT_WAYS][MEASURE_ROUNDS];
    double  best = 0;

    if (piece < (size_t)1 << 20) {
        return 0;
    }
    for (int round = 0; round < MEASURE_ROUNDS; round++) {
        for (int way = 0; way < LIMIT_WAYS; way++, step++) {
            char       *to = (char *)dst + step % n_dst * piece;
            const char *from = (const char *)src + step % n_src * piece;
            int64_t     start = cli_now_ns();
            if (limit_way_usable(way)) {
                limit_copy(way, to, from, piece, threads);
            }
            ns[way][round] = cli_now_ns() - start;
        }
    }
    for (int way = 0; way < LIMIT_WAYS; way++) {
        qsort(ns[way], MEASURE_ROUNDS, sizeof ns[way][0], compare_ns);
        int64_t median = ns[way][MEASURE_ROUNDS / 2];
        double  rate = median > 0 ? 2.0 * 1e9 * (double)piece / (double)median : 0;
        best = limit_way_usable(way) && rate > best ? rate : best;
    }
    return best;
}
