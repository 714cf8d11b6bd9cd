/*
 * The machine's own limit: plain copies with nothing in the way.  Every speed
 * that the commands print stands beside one of these, taken in the same run.
 */
#ifndef PAGEDKV_CLI_LIMIT_H
#define PAGEDKV_CLI_LIMIT_H

#include <stddef.h>
#include <stdint.h>

/* One contiguous stretch to copy. */
typedef struct limit_row {
    void       *dst;
    const void *src;
    size_t      bytes;
} limit_row;

/* Ways to copy, from plain to clever; not every processor has all. */
enum {
    LIMIT_MEMCPY = 0,
    LIMIT_STREAM = 1,          /* streaming stores */
    LIMIT_STREAM_PREFETCH = 2, /* streaming, the stretch's next pages prefetched */
    LIMIT_WAYS = 3
};

/* Name of a way for tables: "memcpy", "stream", "stream+prefetch". */
const char *limit_way_name(int way);

/* 1 if this processor has the way. */
int limit_way_usable(int way);

/*
 * How many of `threads` threads a plain copy of so many bytes is worth: small
 * ones stay on one, since starting a second costs more than it brings.
 */
int limit_threads(size_t bytes, int threads);

/* Copies n rows in order, cut between the threads by bytes, and ends with a fence. */
void limit_copy_rows(int way, const limit_row *rows, size_t n, int threads);

/* Copies one stretch, cut at 4 KiB between the threads, and ends with a fence. */
void limit_copy(int way, void *dst, const void *src, size_t bytes, int threads);

/*
 * Best rate of a contiguous copy, bytes read plus written per second: 64 MiB
 * pieces of dst [dst_bytes], source warm or cold as it comes, medians of
 * several rounds of every way.  src [src_bytes].  0 if the buffers are smaller
 * than 1 MiB.
 */
double limit_measure(void *dst, size_t dst_bytes, const void *src, size_t src_bytes, int threads);

#endif
