/*
 * What the replay writes, and how it knows later that it is still there.  The
 * content of a head vector follows from (key, position, layer, head, K or V),
 * so nothing has to be remembered; a stamp tells which way wrote it last.
 */
#ifndef PAGEDKV_CLI_CONTENT_H
#define PAGEDKV_CLI_CONTENT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* One token's row of the combined layout: K0 V0 K1 V1 ... */
typedef struct content_shape {
    int64_t n_heads;
    int64_t head_bytes; /* bytes of one head vector */
    int64_t row_bytes;  /* 2 * n_heads * head_bytes */
} content_shape;

/* Memory that belongs to no token holds this byte. */
enum { CONTENT_POISON = 0xA5 };

/* Stamps: the ways that the same step is written.  0 means none. */
enum { CONTENT_STAMPS = 4 };

/* The finaliser of splitmix64 (Steele, Lea, Flood 2014): every bit reaches every bit. */
static inline uint64_t content_mix(uint64_t x)
{
    x ^= x >> 30;
    x *= 0xbf58476d1ce4e5b9u;
    x ^= x >> 27;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

/* Fills the row of one token, unstamped. */
void content_fill(const content_shape *shape, uint64_t key, int64_t position, int64_t layer,
                  unsigned char *row);

/*
 * Mixes a stamp into one byte of every head vector of the row, or takes the same
 * one out again.  Which byte follows from the position: over a run of tokens
 * every byte has its turn, so no part of a vector can be left out unseen.
 */
void content_stamp(const content_shape *shape, int64_t position, int stamp, unsigned char *row);

/*
 * The same where the cache has another element type: the numbers of one head vector
 * of the row (K0, V0, K1, ...), in [-4, 4) and with so few bits that they are exact
 * in an element type of `bits` significant ones.  One of them, which follows from the
 * position, is the stamp's: it survives every format.
 */
void content_numbers(uint64_t key, int64_t position, int64_t layer, int64_t vector, int stamp,
                     int bits, float *numbers, int64_t n);

/* Is every byte of the range poison? */
bool content_is_poison(const unsigned char *bytes, size_t n_bytes);

#endif
