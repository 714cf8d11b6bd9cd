/*
 * What the targets share: values drawn from the fuzzer's bytes, and what a
 * command printed.  Behind the last byte everything is 0.
 */
#ifndef PAGEDKV_FUZZ_INPUT_H
#define PAGEDKV_FUZZ_INPUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* The entry of each target; returns 0.  A property that does not hold aborts. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct input {
    const uint8_t *at;
    size_t         left;
} input;

uint8_t take_byte(input *in);

/* A number in [min, max], from as few bytes as tell its values apart. */
int64_t take_range(input *in, int64_t min, int64_t max);

/* One in `of`. */
bool take_chance(input *in, int64_t of);

/* Any number: mostly small, else at an edge of some width, else any bytes. */
int64_t take_number(input *in);

/* take_number() cut to 32 bits, and one in [min, max] but for one time in 16. */
int32_t take_int32(input *in);
int32_t take_mostly(input *in, int64_t min, int64_t max);

/*
 * Strides of three axes that nest in some order around inner_bytes, with some
 * padding.  n is [3], outermost axis first.  Sums wrap around.
 */
void take_strides(input *in, const int64_t n[3], int64_t inner_bytes, int64_t stride[3]);

/* malloc() of just so many bytes that ends the program instead of returning NULL. */
void *exactly(size_t n_bytes);

/* Fills memory with bytes that tell places apart. */
void fill_noise(void *memory, size_t n_bytes);

/* Standard output and standard error in memory, while a command runs. */
typedef struct capture {
    FILE  *kept[2];
    FILE  *stream[2];
    char  *text[2]; /* after capture_end(): what went to each, with a zero byte */
    size_t length[2];
} capture;

enum { CAPTURED_OUT, CAPTURED_ERR };

void capture_begin(capture *c);
void capture_end(capture *c);
void capture_free(capture *c);

/* Is that exactly one line of the program's own, as every failure prints? */
bool is_one_error_line(const char *text);

#endif
